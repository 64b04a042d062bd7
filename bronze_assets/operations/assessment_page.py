"""The assessments of a schema as one page: findings first, then rules, columns and what moved."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from bronze_assets.page import document, moment, table, words

_STYLE = """
article h3 { font-size: 1.1rem; } article h4 { margin: 1rem 0 .3rem; font-size: .95rem; }
details { margin-top: .5rem; } li { margin: .3rem 0; } td { min-width: 4rem; overflow-wrap: normal; }
"""


def page(report: Mapping[str, Any]) -> str:
    """The page of a report, given as its JSON."""
    tables = report["tables"]
    bad = [one for one in tables if not one["passed"]]
    count = len(bad)
    headline = (
        f"{count} of {len(tables)} tables {'has' if count == 1 else 'have'} findings."
        if count
        else f"Nothing was found in {len(tables)} tables."
    )
    parts = [
        "<header>",
        f'<div class="score {"bad" if count else "good"}">{"✖" if count else "✔"}</div>',
        f'<div><h1>{escape(headline)}</h1><p class="soft">Quality assessment of '
        f"<code>{escape(report['schema'])}</code>, "
        f"{escape(report['month'])}: the latest version of each key.</p></div></header>",
        *(_card(one) for one in tables),
    ]
    return document(f"{report['schema']}, {report['month']}: {headline}", parts, style=_STYLE)


def _card(one: Mapping[str, Any]) -> str:
    passed = one["passed"]
    since = f"compared with {moment(one['since'])}" if one["since"] else "no assessment before"
    rows = "never loaded" if one["rows"] is None else f"{one['rows']:,} rows"
    mood, mark = ("good", "✔ nothing found") if passed else ("bad", "✖ to be looked at")
    facts = " · ".join([rows, f"assessed {moment(one['at'])}", since])
    frame = "" if passed else ' class="fails"'
    parts = [
        f'<article{frame}><header><h3>{escape(one["table"])}</h3><span class="{mood}">{mark}</span></header>',
        f'<p class="soft">{escape(facts)}</p>',
    ]
    if one["findings"]:
        items = "".join(
            f"<li><strong>{escape(finding['level'])}</strong> {words(finding['words'])}</li>"
            for finding in one["findings"]
        )
        parts.append(f"<ul>{items}</ul>")
    if one["rows"] is not None:
        parts.append(f"<details><summary>Rules, columns and what moved</summary>{_details(one)}</details>")
    return "\n".join([*parts, "</article>"])


def _details(one: Mapping[str, Any]) -> str:
    rules = [
        (f"`{rule['rule']}`", rule["expected"], rule["broken"], "held" if rule["pandera"] else "broken")
        for rule in one["rules"]
    ]
    parts = ["<h4>Rules</h4>", table(("Rule", "Expected", "#Rows that break it", "Pandera"), rules, "There are none.")]
    if one["unjudged"]:
        names = ", ".join(f"`{name}`" for name in one["unjudged"])
        parts.append(f'<p class="soft">Not judged here, since the values are protected: {words(names)}.</p>')
    parts += [
        "<h4>Columns</h4>",
        table(
            ("Column", "Type", "#NULL", "#Distinct, about", "Least", "Most", "#Mean", "#Deviation", "Most frequent"),
            [_column(column) for column in one["columns"]],
            "There are none.",
        ),
        "<h4>What moved</h4>",
        table(
            ("What", "", "How"),
            [
                (moved["column"] or "the table", moved["level"] or "within its bound", moved["words"])
                for moved in one["drift"]
            ],
            "There was nothing to compare.",
        ),
    ]
    return "".join(parts)


def _column(column: Mapping[str, Any]) -> tuple[Any, ...]:
    personal = column["pii"] != "None"
    shown = "personal" if personal else "–"

    def told(name: str) -> Any:
        value = column[name]
        return shown if value is None else f"{value:,.6g}" if isinstance(value, float) else value

    frequent = ", ".join(f"{value} ({rows:,})" for value, rows in column["top"][:5])
    return (
        f"`{column['column']}`" + (f" ({column['pii']})" if personal else ""),
        column["type"],
        column["nulls"],
        *(told(name) for name in ("distinct", "least", "most", "mean", "deviation")),
        frequent or shown,
    )
