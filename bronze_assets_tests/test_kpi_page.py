"""The KPI page: whole and harmless as text; and in a browser: errors, order, width, contrast in light and dark."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bronze_assets.audit import max_error_rate
from bronze_assets.catalog import TABLES
from bronze_assets.operations.kpi_facts import Facts, Known, Load
from bronze_assets.operations.kpi_page import NEXT_STEP
from bronze_assets.operations.kpis import KINDS, KpiReport, judge
from bronze_assets.settings import CaptureMode
from bronze_assets.table import Cadence

NOW = dt.datetime(2026, 6, 15, 12, 30, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
INVENTORY = [table for table in TABLES if table.schema == "inventory_bronze"]
WORST, WARNED = "bz_shipments", "bz_suppliers"
STRANGE = '<script src="https://example.org">`x`</script>'


def loads(days: int = 20, **changes: Any) -> tuple[Load, ...]:
    told: dict[str, Any] = {"seconds": 4.0, "read": 20_000, "quarantined": 10, "score": 97.0} | changes
    moments = [NOW - n * DAY for n in range(days, -1, -1)]
    return tuple(
        Load(f"{at:%F}", at, table_bytes=1_000_000 + n * 1_000, **told | {"score": told["score"] - n % 3})
        for n, at in enumerate(moments)
    )


def a_report() -> KpiReport:
    """Ten tables: one critical, one warned, eight well, which stand before them in the declarations."""
    facts = {
        table.name: Facts(
            loads=loads(),
            first_load=NOW - 20 * DAY,
            last_load=NOW,
            done=None if table.cadence is Cadence.HOURLY else {f"{NOW - n * DAY:%F}": NOW - n * DAY for n in range(21)},
            arrived={},
            open_rows=0,
            rows=1_234_567,
            bytes=1_020_000,
            failed_attempts=0,
        )
        for table in INVENTORY
    }
    (worst,) = (table for table in INVENTORY if table.name == WORST)
    assert max_error_rate(worst) == 0.02
    facts[WORST] = Facts(
        loads=loads(quarantined=900),
        last_load=NOW - 7 * DAY,
        open_rows=18_900,
        oldest_open=NOW - 40 * DAY,
        failed_attempts=3,
        last_failure=f"bz_shipments: no column {STRANGE}. Fix: `ask` the owner.",
    )
    facts[WARNED] = Facts(loads=loads(score=80.0), last_load=NOW, failed_attempts=1)
    known = {WARNED: Known(failed_checks={"null_share": False}), WORST: Known(failed_checks={"a_check": True})}
    return judge(
        *("inventory_bronze", INVENTORY, facts, known, NOW),
        start_date=dt.date(2026, 1, 1),
        capture=CaptureMode.OFF,
    )


class _Page(HTMLParser):
    """Which elements are open, and what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.reached: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag in ("script", "link", "img", "iframe", "object", "image", "use"):
            self.reached.append(tag)
        self.reached += [name for name in told if name.startswith("on") or name in ("src", "style", "xlink:href")]
        if tag == "a":
            self.links.append(told["href"] or "")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


def parsed(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    return page


def test_the_page_is_whole_fetches_and_runs_nothing_and_writes_strange_words_out() -> None:
    text = a_report().to_html(others=["manufacturing_bronze"])

    page = parsed(text)
    assert (page.open, page.reached) == ([], [])
    assert "&lt;script" in text
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert "kpi_manufacturing_bronze.html" in page.links


def test_what_breaks_a_threshold_comes_first_with_what_to_do() -> None:
    text = a_report().to_html(runbook="file:///docs/runbook.md")

    seen = "".join(parsed(text).seen)
    assert seen.index("2 of 10 tables need attention.") < seen.index(WORST)
    names = [table.name for table in INVENTORY if table.name not in (WORST, WARNED)]
    assert seen.index(WORST) < seen.index(WARNED) < seen.index("Within their thresholds")
    assert all(seen.index("Within their thresholds") < seen.index(name) for name in names)
    broken = {kpi.name for table in a_report().troubled for kpi in table.kpis if kpi.state.breaches}
    assert broken == {"freshness", "error_rate", "failed_checks", "quarantine", "quality_score"}
    for name in broken:
        assert f"file:///docs/runbook.md#{name}" in parsed(text).links
    assert "4.5 % (critical; at most 2 %)" in re.sub(r"\s+", " ", seen)


def test_every_kpi_has_a_next_step() -> None:
    assert set(NEXT_STEP) == set(KINDS)
    assert all(step.endswith(".") for step in NEXT_STEP.values())


def test_all_is_well_says_so() -> None:
    facts = {table.name: Facts(last_load=NOW) for table in INVENTORY}
    report = judge("inventory_bronze", INVENTORY, facts, {}, NOW, start_date=dt.date(2026, 1, 1))
    text = report.to_html()
    assert "All 10 tables are within their thresholds." in text
    assert "To do" not in text
    assert 'class="fails"' not in text


def test_the_charts_show_the_points_in_the_pages_colours() -> None:
    text = a_report().to_html()
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) == 3 * len(INVENTORY)
    for chart in charts:
        assert 'stroke="var(--accent)"' in chart
        # No colour of its own, which would fit light or dark alone.
        assert not re.findall(r'(?:fill|stroke)="#', chart)
        assert chart.count('role="graphics-symbol"') > 1
    # A point for each load.
    (line,) = re.findall(r'class="mark-line[^"]*".*?d="([^"]+)"', charts[0], re.DOTALL)
    assert len(re.findall("[ML]", line)) == 21


# -------------------------------------------------------------------------------------------------------- in a browser

MEASURE = """<!doctype html><meta charset=utf-8><body style=margin:0>
<iframe id=f width=%d height=900 style='border:0' src='%s'></iframe><script>
const number = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
  .map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
document.getElementById("f").onload = () => {
  const page = document.getElementById("f").contentDocument, view = page.defaultView;
  page.querySelectorAll("details").forEach(one => one.open = true);
  const back = node => {
    for (; node; node = node.parentElement) {
      const colour = number(view.getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let worst = 99, where = "";
  const walk = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim()) continue;
    const style = view.getComputedStyle(node), text = node.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(number(text)), light(back(node))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < worst) { worst = ratio; where = walk.currentNode.textContent.trim().slice(0, 30); }
  }
  const dark = light(number(view.getComputedStyle(page.body).backgroundColor)) < .2;
  document.title = JSON.stringify({wide: page.documentElement.scrollWidth, worst, where, dark,
    first: page.querySelector("article h3").textContent,
    top: page.querySelector("article").getBoundingClientRect().top});
};
</script>"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return a_report().write(tmp_path / "reports", others=["manufacturing_bronze"])


def chromium(tmp_path: Path, *options: str) -> tuple[str, str]:
    """What a headless browser prints, and what it complains of in its console."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


NEEDS_CHROMIUM = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed (apt package chromium)"
)


@NEEDS_CHROMIUM
@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "light"), (390, "dark"), (1200, "dark")])
def test_it_can_be_read_at_every_width_in_light_and_dark(page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    frame = tmp_path / "frame.html"
    # Chromium's own window is never narrower than 500 pixels; a frame is.
    frame.write_text(MEASURE % (width, page.as_uri()))
    wanted = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"

    shown, complaints = chromium(
        tmp_path, wanted, "--allow-file-access-from-files", "--window-size=1300,1000", "--dump-dom", frame.as_uri()
    )

    (told,) = re.findall(r"<title>(\{.*?\})</title>", shown)
    found = json.loads(told)
    assert complaints == ""
    assert found["wide"] <= width
    assert found["dark"] is (scheme == "dark")
    # WCAG AA for text, the labels of the charts too.
    assert found["worst"] >= 4.5, found["where"]
    # The worst table begins on the first screen of a telephone.
    assert found["first"] == WORST
    assert found["top"] < 500


@NEEDS_CHROMIUM
def test_its_console_is_silent_and_would_not_be_if_something_was_wrong(page: Path, tmp_path: Path) -> None:
    shown, complaints = chromium(tmp_path, "--dump-dom", page.as_uri())
    assert complaints == ""
    assert "<svg" in shown
    # What its policy forbids is complained of: the silence means something.
    page.write_text(page.read_text().replace("</main>", '<img src="https://example.org/x.png"></main>'))
    _, complaints = chromium(tmp_path, "--dump-dom", page.as_uri())
    assert "Content Security Policy" in complaints


@NEEDS_CHROMIUM
def test_a_picture_of_it_can_be_taken(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    chromium(tmp_path, f"--screenshot={picture}", "--window-size=500,1600", "--hide-scrollbars", page.as_uri())
    assert picture.read_bytes().startswith(b"\x89PNG")
