"""What the reports have in common as pages: no script, no network, light and dark, readable on a telephone."""

from __future__ import annotations

from collections.abc import Sequence
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


def document(title: str, parts: Sequence[str], *, style: str = "") -> str:
    """A whole page.

    Args:
        parts: of its body, as HTML.
        style: what it needs beside the common style.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing may be fetched or run, whatever a name of a column says.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], nothing: str) -> str:
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


class Code(str):
    """SQL, whose backticks are its own."""


def _cell(value: Any) -> str:
    if isinstance(value, Code):
        return f"<code>{escape(value)}</code>"
    return f"{value:,}" if isinstance(value, int) else words(str(value))


def words(text: str) -> str:
    """Text as HTML, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 and at < len(parts) - 1 else part for at, part in enumerate(parts))


def moment(text: str | None) -> str:
    """A moment in ISO 8601, to the minute."""
    return "–" if text is None else f"{text[:10]} {text[11:16]} UTC"


def shown_bytes(count: float) -> str:
    """An amount of data for a person."""
    for name in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if name == "B" else f"{count:.1f} {name}"
        count /= 1000
    return f"{count:.1f} TB"
