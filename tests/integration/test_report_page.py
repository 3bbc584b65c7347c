"""The report in a real browser: it reads well on a desk and on a phone, and asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentprm.report import render_report
from agentprm.studies import STUDIES, run_study
from tests import chromium
from tests.finished_run import finished_run
from tests.unit.test_studies import Recorder

pytestmark = pytest.mark.skipif(
    chromium.BINARY is None, reason="no Chromium: apt-get install chromium"
)

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CONTRAST = """
(() => {
  const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const ground = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!c.endsWith(', 0)')) return c; } return 'rgb(255, 255, 255)'; };
  const ratio = e => { const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
  const text = document.querySelectorAll('p, dt, dd, th, td, small, li, a, span, h1, h2, h3');
  return Math.min(...[...text].map(ratio));
})()
"""


@pytest.fixture(scope="module")
def page() -> Iterator[chromium.Page]:
    with chromium.browser() as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    finished_run(directory / "run")
    command = "agentprm study controls --run runs/tiny"
    run_study(STUDIES["controls"], directory / "run", Recorder().work, {}, command)
    file = directory / "report.html"
    file.write_text(render_report(directory / "run"), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_and_is_legible_and_alone(
    page: chromium.Page, report: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    page.requests.clear()
    page.open(report, width, dark=dark)
    assert page.evaluate(OVERFLOW) <= 0
    assert page.evaluate(CONTRAST) >= 4.5  # WCAG 2.2 AA
    assert page.requests == [report.as_uri()]
    assert page.complaints == []
    page.screenshot(tmp_path / "page.png")


def test_what_agents_read_and_write_is_text_and_not_markup(
    page: chromium.Page, report: Path
) -> None:
    page.open(report, 1280)
    assert page.evaluate("document.scripts.length") == 0
    assert "<script>alert(1)</script>" in page.evaluate("document.body.textContent")


def test_every_figure_is_described(page: chromium.Page, report: Path) -> None:
    page.open(report, 1280)
    assert page.evaluate("document.querySelectorAll('svg').length") == 3
    labelled = "[...document.querySelectorAll('svg')].map(e => e.getAttribute('aria-label'))"
    curves, reliability, study = page.evaluate(labelled)
    assert "pi_1 58%" in curves
    assert "Q 0.95 target 0.84" in reliability
    assert study == "AgentPRM and its controls, table 1, baselines"
