"""The compliance report as one page: no script, no network, light and dark, readable on a telephone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1b1f24; --soft: #5b6470; --line: #d9dee5;
  --bad: #b42318; --bad-back: #fef1f0; --good: #17693a; --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1d2126; --text: #e7eaee; --soft: #a3adb9;
  --line: #353c45; --bad: #ff9a8f; --bad-back: #35201f; --good: #7fd6a2; --code: #2a3037; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1rem; }
h1 { font-size: 1.4rem; margin: .5rem 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0; }
.score { font-size: 2.6rem; font-weight: 700; line-height: 1.1; }
.bad { color: var(--bad); } .good { color: var(--good); }
.soft { color: var(--soft); margin: 0; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem 1rem;
  margin: .6rem 0; overflow-wrap: anywhere; }
article.fails { background: var(--bad-back); border-color: var(--bad); border-left-width: .4rem; }
article p { margin: .3rem 0 0; }
code { background: var(--code); border-radius: .25rem; padding: .1em .3em; font-size: .9em; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .7rem; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; padding: .3rem 0; }
@media print { body { background: #fff; } article { break-inside: avoid; } }
"""

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
        f'<p class="soft">{told}. Made {_moment(report["at"])}.</p></div></header>',
    ]
    if failing:
        parts.append(f"<h2>To do: {len(failing)}, the worst first</h2>")
        parts += [_failing(control) for control in failing]
    else:
        parts.append('<article><p class="good">Nothing to do.</p></article>')
    parts.append(f"<h2>What holds: {len(holding)}</h2>")
    parts.append(_table(["Control", "Found"], [[c["title"], c["sentence"]] for c in holding], "Nothing."))
    if idle:
        parts.append(f"<h2>What does not apply: {len(idle)}</h2>")
        parts.append(_table(["Control", "Why"], [[c["title"], c["sentence"]] for c in idle], "Nothing."))
    parts += _facts(report)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing may be fetched or run, whatever a name of a column says.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Compliance {report['score']} %</title><style>{_STYLE}</style></head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _failing(control: Mapping[str, Any]) -> str:
    return (
        f'<article class="fails"><h3>Fails: {escape(control["title"])}</h3><p>{_words(control["sentence"])}</p>'
        f"<p><strong>Fix:</strong> {_words(control['fix'])}</p></article>"
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
        _table(["Table", "Column", "Why it is here"], looks, "None."),
        "<h2>Open rows in quarantine</h2>",
        _table(
            ["Quarantine", "#Rows", "Oldest"],
            [[w["table"], w["rows"], _moment(w["oldest"])] for w in report["quarantine"]],
            "There is no quarantine of personal data yet.",
        ),
        "<h2>Erasures</h2>",
        f'<p class="soft">{erasures["done"]:,} done, of {erasures["subjects"]:,} persons.</p>',
        _table(["State", "Evidence"], [list(one) for one in left], "None is left to finish."),
        "<h2>Who read personal data</h2>",
        _table(
            ["Who", "#Attempts", "#By SQL", "#Purposes", "#Answered", "#Refused", "#Failed"],
            [[a["who"], *(a[name] for name in _COUNTS)] for a in report["access"]],
            "Nobody, so far as the access log knows.",
        ),
        *_grants(report["grants"]),
        f"<details><summary>Classified columns: {len(columns)}</summary>",
        _table(["Table", "Column", "Class", "#Values", "#Protected"], columns, "No table is loaded yet."),
        "</details>",
    ]


def _grants(grants: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [[g["grantee"], "lacks" if g["missing"] else "has", g["what"], _Code(g["statement"] + ";")] for g in grants]
    return ["<h2>Grants that are not as declared</h2>", _table(["Who", "", "What", "Statement"], rows, "None.")]


def _share(column: Mapping[str, Any]) -> str:
    """100 % only where all are."""
    if column["values"] == column["protected"]:
        return "all"
    return f"{100 * column['protected'] // max(1, column['values'])} %"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]], nothing: str) -> str:
    """A table; heads that begin with `#` are of numbers."""
    if not rows:
        return f'<p class="soft">{escape(nothing)}</p>'
    marks = [' class="number"' if head.startswith("#") else "" for head in heads]
    head = "".join(f"<th{mark}>{escape(text.lstrip('#'))}</th>" for mark, text in zip(marks, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{_cell(value)}</td>" for mark, value in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class _Code(str):
    """SQL, whose backticks are its own."""


def _cell(value: Any) -> str:
    if isinstance(value, _Code):
        return f"<code>{escape(value)}</code>"
    return f"{value:,}" if isinstance(value, int) else _words(str(value))


def _words(text: str) -> str:
    """Text with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 and at < len(parts) - 1 else part for at, part in enumerate(parts))


def _moment(text: str | None) -> str:
    return "–" if text is None else f"{text[:10]} {text[11:16]} UTC"
