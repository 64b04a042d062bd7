"""Small charts as SVG, drawn by Vega-Lite without a browser; their colours are the page's, so light and dark fit."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import altair as alt
import vl_convert

_WIDTH, _HEIGHT = 300, 80


def chart(points: Sequence[tuple[str, float]], *, floor: float | None = None) -> str:
    """A line through some points, as an `svg` element.

    Args:
        points: moments in ISO 8601, and numbers.
        floor: a threshold not to fall below, drawn dashed; the axis then begins there or at the least number. Without
            it, at zero.
    """
    data = alt.InlineData(values=[{"at": at, "value": value} for at, value in points])
    least = min(value for _, value in points)
    moments = sorted(dt.datetime.fromisoformat(at) for at, _ in points)
    times = "%H:%M" if moments[-1] - moments[0] < dt.timedelta(days=2) else "%d %b"
    scale = alt.Scale(zero=True, nice=False) if floor is None else alt.Scale(domain=[min(floor, least), 100])
    line = (
        alt.Chart(data)
        .mark_line(color="var(--accent)", strokeWidth=2, point=alt.OverlayMarkDef(color="var(--accent)", size=18))
        .encode(
            x=alt.X("at:T", title=None, axis=alt.Axis(tickCount=3, format=times, labelOverlap=True)),
            y=alt.Y("value:Q", title=None, scale=scale),
        )
    )
    drawn = line
    if floor is not None:
        bound = alt.Chart(alt.InlineData(values=[{"value": floor}])).mark_rule(color="var(--warn)", strokeDash=[4, 3])
        drawn = line + bound.encode(y="value:Q")
    spec = (
        drawn.properties(width=_WIDTH, height=_HEIGHT, background="transparent", padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="var(--soft)",
            labelFontSize=12,
            gridColor="var(--grid)",
            domainColor="var(--grid)",
            tickColor="var(--grid)",
            tickCount=3,
        )
        .configure_axisY(labelExpr="format(datum.value, datum.value < 1000 ? '.3~g' : '.3~s')")
    )
    return str(vl_convert.vegalite_to_svg(spec.to_json()))
