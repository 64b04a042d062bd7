"""The compliance report as one page: no script, no network, light and dark, readable on a telephone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bronze_assets.page import Code, document, moment, table, words

_COUNTS = ("attempts", "by_sql", "purposes", "answered", "refused", "failed")


def page(report: Mapping[str, Any]) -> str:
    """The page of a report, given as `Report.to_json` writes it."""
    failing = [control for control in report["controls"] if control["holds"] is False]
    holding = [control for control in report["controls"] if control["holds"]]
    idle = [control for control in report["controls"] if control["holds"] is None]
    mood = "bad" if failing else "good"
    told = f"{len(holding)} of {len(holding) + len(failing)} controls hold"
    parts = [
        "<header>",
        f'<div class="score {mood}">{report["score"]} %</div>',
        f"<div><h1>Personal data: compliance</h1>"
        f'<p class="soft">{told}. Made {moment(report["at"])}.</p></div></header>',
    ]
    if failing:
        parts.append(f"<h2>To do: {len(failing)}, the worst first</h2>")
        parts += [_failing(control) for control in failing]
    else:
        parts.append('<article><p class="good">Nothing to do.</p></article>')
    parts.append(f"<h2>What holds: {len(holding)}</h2>")
    parts.append(table(["Control", "Found"], [[c["title"], c["sentence"]] for c in holding], "Nothing."))
    if idle:
        parts.append(f"<h2>What does not apply: {len(idle)}</h2>")
        parts.append(table(["Control", "Why"], [[c["title"], c["sentence"]] for c in idle], "Nothing."))
    parts += _facts(report)
    return document(f"Compliance {report['score']} %", parts)


def _failing(control: Mapping[str, Any]) -> str:
    return (
        f'<article class="fails"><h3>Fails: {escape(control["title"])}</h3><p>{words(control["sentence"])}</p>'
        f"<p><strong>Fix:</strong> {words(control['fix'])}</p></article>"
    )


def _facts(report: Mapping[str, Any]) -> list[str]:
    erasures = report["erasures"]
    left = [*(("failed", one) for one in erasures["failed"]), *(("without an end", one) for one in erasures["open"])]
    left += [("stopped by a legal hold", one) for one in erasures["held"]]
    columns = [
        [c["table"], c["column"], c["pii"], c["values"], "plain" if c["protected"] is None else _share(c)]
        for c in report["columns"]
    ]
    looks = [
        [s["table"], s["column"], f"{s['kind']}, {s['share']:.0%} of {s['looked_at']:,}"] for s in report["suspects"]
    ]
    looks += [[u["table"], u["column"], f"not declared, {u['values']:,} values"] for u in report["unclassified"]]
    return [
        "<h2>Columns that nobody classified</h2>",
        table(["Table", "Column", "Why it is here"], looks, "None."),
        "<h2>Open rows in quarantine</h2>",
        table(
            ["Quarantine", "#Rows", "Oldest"],
            [[w["table"], w["rows"], moment(w["oldest"])] for w in report["quarantine"]],
            "There is no quarantine of personal data yet.",
        ),
        "<h2>Erasures</h2>",
        f'<p class="soft">{erasures["done"]:,} done, of {erasures["subjects"]:,} persons.</p>',
        table(["State", "Evidence"], [list(one) for one in left], "None is left to finish."),
        "<h2>Who read personal data</h2>",
        table(
            ["Who", "#Attempts", "#By SQL", "#Purposes", "#Answered", "#Refused", "#Failed"],
            [[a["who"], *(a[name] for name in _COUNTS)] for a in report["access"]],
            "Nobody, so far as the access log knows.",
        ),
        *_grants(report["grants"]),
        f"<details><summary>Classified columns: {len(columns)}</summary>",
        table(["Table", "Column", "Class", "#Values", "#Protected"], columns, "No table is loaded yet."),
        "</details>",
    ]


def _grants(grants: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [[g["grantee"], "lacks" if g["missing"] else "has", g["what"], Code(g["statement"] + ";")] for g in grants]
    return ["<h2>Grants that are not as declared</h2>", table(["Who", "", "What", "Statement"], rows, "None.")]


def _share(column: Mapping[str, Any]) -> str:
    """100 % only where all are."""
    if column["values"] == column["protected"]:
        return "all"
    return f"{100 * column['protected'] // max(1, column['values'])} %"
