"""The KPIs of a schema as one page: what needs attention first, what to do about it, charts. No script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from bronze_assets.page import document, moment, shown_bytes, words

NEXT_STEP: Final[Mapping[str, str]] = {
    "freshness": "See whether its last run failed or none was started, then load its current partition.",
    "latency": "See what the load waits for: the capture, the file sensor, or a queue of runs.",
    "processing_time": "Compare rows and seconds with the loads before, and look at the source and the machine.",
    "quality_score": "See which rules the rows broke, in the checks of the last run, and tell the source's owner.",
    "error_rate": "`python -m bronze_assets quarantine list <table>` says which rules; mend the source, then replay.",
    "storage_growth": "See whether the rows grew as much; else the files are too small: run the maintenance.",
    "availability": "See which partitions came late, in the asset's timeline, and why their runs did.",
    "quarantine": "Replay what can be loaded by now, and dismiss what never can: `quarantine replay` or `dismiss`.",
    "failed_checks": "Open the failed checks of the asset: each has counts, and keys of examples.",
    "capture_lag": "`python -m bronze_assets capture --status`, then see whether the capture runs.",
    "cost": "Compare the cluster with the data: fewer or smaller nodes, or fewer loads of more rows.",
    "time_to_insight": "See which file or change came last, and what it waited for.",
    "compliance": "`python -m bronze_assets compliance` names what does not hold, and its fix.",
    "throughput": "Look at the read connections, the source's load and the machine's.",
    "backlog": "See why the files wait: a load that fails, a new column to accept, or a sensor that is off.",
}
"""What to do first where a KPI breaks its threshold."""

_STYLE = """
:root { --warn: #8a5a00; --warn-back: #fff8e8; --accent: #2563a8; --grid: #d9dee5; }
@media (prefers-color-scheme: dark) { :root { --warn: #f2c14e; --warn-back: #2f2917; --accent: #7cb4f0;
  --grid: #353c45; } }
a { color: var(--accent); }
article.warns { background: var(--warn-back); border-color: var(--warn); border-left-width: .4rem; }
.warn { color: var(--warn); }
article header { gap: 0 .7rem; }
article h3 { font-size: 1.1rem; }
.mark { font-weight: 700; }
ul.todo { list-style: none; margin: .5rem 0 0; padding: 0; }
ul.todo li { margin: .5rem 0 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .3rem 1rem;
  margin-top: .7rem; }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; justify-content: flex-end; }
figcaption { font-size: .85rem; color: var(--soft); }
figure svg { display: block; width: 100%; height: auto; max-width: 22rem; }
details { margin-top: .5rem; }
td small { display: block; color: var(--soft); }
table.kpis td.number { white-space: nowrap; }
@media (max-width: 40rem) { table.kpis thead { display: none; }
  table.kpis, table.kpis tbody { display: block; }
  table.kpis tr { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 .7rem; padding: .4rem .7rem;
    border-top: 1px solid var(--line); }
  table.kpis td { border: 0; padding: 0; }
  table.kpis td:nth-child(n+3) { grid-column: 1 / -1; font-size: .85rem; text-align: left; color: var(--soft); }
  table.kpis td:nth-child(3)::before { content: "Threshold "; }
  table.kpis td:nth-child(4)::before { content: "Target "; } }
nav { margin: .3rem 0; }
"""

_MARKS = {
    "critical": ("bad", "✖ critical"),
    "warning": ("warn", "▲ warning"),
    "ok": ("good", "✔ ok"),
    "unknown": ("soft", "– not known"),
}
_CLASSES = {"critical": ' class="fails"', "warning": ' class="warns"'}


def page(report: Mapping[str, Any], *, runbook: str, others: Sequence[str] = ()) -> str:
    """The page of a report, given as `KpiReport.to_json` writes it.

    Args:
        runbook: its address; each KPI has a section of its name there.
        others: schemas whose pages lie beside this one.
    """
    tables = report["tables"]
    troubled = [table for table in tables if table["state"] in _CLASSES]
    calm = [table for table in tables if table not in troubled]
    worst, mark = _MARKS[troubled[0]["state"] if troubled else "ok"]
    mark = mark.partition(" ")[0]
    links = ", ".join(f'<a href="kpi_{escape(one)}.html">{escape(one)}</a>' for one in others)
    parts = [
        "<header>",
        f'<div class="score {worst}">{mark}</div>',
        f'<div><h1>{escape(report["headline"])}</h1><p class="soft">KPIs of <code>{escape(report["schema"])}</code>,'
        f" {moment(report['at'])}.</p></div></header>",
    ]
    if links:
        parts.append(f'<nav class="soft">Other schemas: {links}</nav>')
    if report["limits"]:
        parts.append(f"<article><p>{words(report['limits'])}</p></article>")
    if troubled:
        parts.append("<h2>To do, the worst first</h2>")
        parts += [_card(table, runbook) for table in troubled]
    if calm:
        parts.append("<h2>Within their thresholds</h2>")
        parts += [_card(table, runbook) for table in calm]
    return document(f"{report['schema']}: {report['headline']}", parts, style=_STYLE)


def _card(table: Mapping[str, Any], runbook: str) -> str:
    mood, mark = _MARKS[table["state"]]
    broken = [kpi for kpi in table["kpis"] if kpi["state"] in _CLASSES]
    known = [kpi for kpi in table["kpis"] if kpi["value"] is not None]
    parts = [
        f"<article{_CLASSES.get(table['state'], '')}><header><h3>{escape(table['table'])}</h3>"
        f'<span class="mark {mood}">{mark}</span></header>',
        f'<p class="soft">{_facts(table)}</p>',
    ]
    if broken:
        parts.append('<ul class="todo">' + "".join(_todo(kpi, runbook) for kpi in broken) + "</ul>")
    if table["failed_attempts"]:
        count = table["failed_attempts"]
        # Where the table is not fresh, the reason has said so.
        late = any(kpi["name"] == "freshness" for kpi in broken)
        said = table["last_failure"] and not late
        last = f" Since then none has been good: {words(table['last_failure'])}" if said else ""
        parts.append(f"<p>{'1 attempt' if count == 1 else f'{count:,} attempts'} failed within a day.{last}</p>")
    if len(table["points"]) > 1:
        parts.append(_charts(table))
    parts.append(
        f"<details><summary>All KPIs: {len(known)} known</summary>{_numbers(table['kpis'])}</details></article>"
    )
    return "\n".join(parts)


def _facts(table: Mapping[str, Any]) -> str:
    told = [
        f"{table['cadence']}",
        f"last load {moment(table['last_load'])}" if table["last_load"] else "never loaded",
    ]
    if table["rows"] is not None:
        told.append(f"{table['rows']:,} row versions")
    if table["bytes"] is not None:
        told.append(shown_bytes(table["bytes"]))
    if table["open_rows"]:
        told.append(f"{table['open_rows']:,} in quarantine")
    return escape(" · ".join(told))


def _todo(kpi: Mapping[str, Any], runbook: str) -> str:
    mood, mark = _MARKS[kpi["state"]]
    bound = "at least" if kpi["least"] else "at most"
    where = f"{runbook}#{kpi['name']}"
    return (
        f'<li><strong>{escape(kpi["title"])} <span class="{mood}">{_close(kpi["shown"])}</span></strong>'
        f' <span class="soft">({mark.partition(" ")[2]}; {bound} {_close(kpi["threshold_shown"])})</span><br>'
        f"{words(kpi['reason'])}<br><strong>Next:</strong> {words(NEXT_STEP[kpi['name']])}"
        f' <a href="{escape(where, quote=True)}">Runbook: {escape(kpi["name"])}</a></li>'
    )


def _numbers(kpis: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for kpi in kpis:
        mood, mark = _MARKS[kpi["state"]]
        bound = "≥ " if kpi["least"] else "≤ "
        threshold = "–" if kpi["threshold"] is None else bound + kpi["threshold_shown"]
        target = "–" if kpi["target"] is None else bound + kpi["target_shown"]
        missed = " (missed)" if kpi["on_target"] is False else ""
        rows.append(
            f"<tr><td>{escape(kpi['title'])}<small>{words(kpi['reason'])}</small></td>"
            f'<td class="number">{escape(kpi["shown"])}<br><span class="{mood}">{mark.partition(" ")[0]}</span></td>'
            f'<td class="number">{escape(threshold)}</td><td class="number">{escape(target + missed)}</td></tr>'
        )
    return (
        '<div class="wide"><table class="kpis"><thead><tr><th>KPI</th><th class="number">Now</th>'
        '<th class="number">Threshold</th><th class="number">Target</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _charts(table: Mapping[str, Any]) -> str:
    # Late: whoever imports the definitions is not to wait for altair.
    from bronze_assets.operations.kpi_charts import chart

    limits = {kpi["name"]: kpi for kpi in table["kpis"]}
    score, seconds = table["score_change"], table["seconds_change"]
    captions = [
        ("score", "Average score", "" if score is None else _signed(f"{score:+.1f} in a week")),
        ("seconds", "Seconds of a load", "" if seconds is None else _signed(f"{seconds:+.0%} in a week")),
        ("bytes", "Bytes", "" if table["bytes"] is None else f"{shown_bytes(table['bytes'])} now"),
    ]
    figures = []
    for name, title, told in captions:
        points = [(point["at"], point[name]) for point in table["points"] if point[name] is not None]
        if len(points) < 2:
            continue
        floor = limits["quality_score"]["warning"] if name == "score" else None
        caption = f"{title}; {told}" if told else title
        figures.append(f"<figure><figcaption>{escape(caption)}</figcaption>{chart(points, floor=floor)}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _close(text: str) -> str:
    """A number that stays with its unit."""
    return escape(text).replace(" ", "&nbsp;")


def _signed(text: str) -> str:
    return text.replace("-", "−")
