"""The page: what is on it, in order; how it looks is in `page.html.j2` and `style.css.j2`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from agentprm.config import Config, read_config
from agentprm.registry import Registry
from agentprm.report._episodes import find_stories, highest_q, ranked
from agentprm.report._fits import describe_fits, describe_prms, stage_times
from agentprm.results import Row, read_results, task_names
from agentprm.runs import evaluation_stage, read_episodes
from agentprm.studies import STUDIES
from agentprm.studies.figures import for_page, inline, plot

_MARKDOWN = MarkdownIt("js-default")
"""Tables, and no HTML of the text's own."""


def render_report(run: Path) -> str:
    """The report of a run, finished or not, as one HTML page without links to anything outside."""
    config = read_config(run)
    rows = read_results(run) if (run / "results.json").exists() else []
    environment = Environment(
        loader=PackageLoader("agentprm", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["percent"] = lambda rate: f"{100 * rate:.0f}"
    return environment.get_template("page.html.j2").render(
        name=run.resolve().name,
        date=datetime.date.today().isoformat(),
        config=config,
        conditions=_conditions(run, config),
        rows=rows,
        best=max(rows, key=lambda row: row.success, default=None),
        tasks=task_names(rows),
        curves=_curves(run, rows),
        prms=describe_prms(Registry(run / "checkpoints")),
        fits=describe_fits(run),
        times=stage_times(run),
        studies=_studies(run),
        stories=find_stories(run, rows),
        ranked=ranked,
        highest_q=highest_q,
    )


def _conditions(run: Path, config: Config) -> list[tuple[str, str]]:
    """What the numbers of the page hang on, as names and values."""
    plan = config.evaluation
    given = [
        ("Preset", ", ".join([config.preset, *_assignments(config.overrides)])),
        ("Model", config.model),
        ("Seed", str(config.seed)),
        ("Evaluation", f"at most {plan.games} games of {plan.split}, {config.max_steps} turns"),
        (
            "Sampling",
            f"{plan.sampling.in_words()} alone; {plan.choice_in_words}, N = {plan.best_of}",
        ),
        ("Rollouts", f"{config.rollouts.games} games × {config.rollouts.per_game} an iteration"),
        ("Discount", f"γ = {config.gamma:g}"),
    ]
    episodes = read_episodes(run, evaluation_stage("pi_0"))
    if episodes:
        played = episodes[0].provenance
        given += [
            ("Engine", played.engine),
            ("Data", played.data_version),
            ("Prompt", f"{config.prompt} ({played.template_hash})"),
            ("Package", f"agentprm {played.package_version}"),
        ]
    return given


def _assignments(overrides: dict[str, Any]) -> list[str]:
    return [f"{name} = {value}" for name, value in overrides.items()]


def _curves(run: Path, rows: list[Row]) -> Markup | None:
    if len(rows) < 2:
        return None
    study = STUDIES["curves"]
    cells = study.rows({"run": run})
    said = ", ".join(f"{row.name} {row.success:.0%}" for row in rows)
    figure = plot(lambda figure: study.draw(cells, figure))
    return Markup(inline(figure, f"Success over iterations: {said}"))


def _studies(run: Path) -> list[dict[str, Any]]:
    """The studies that were done, in the paper's order, but for what is on the page anyway."""
    found = []
    for study in STUDIES.values():
        home = run / "studies" / study.name
        conditions, figure = home / "conditions.md", home / "figure.svg"
        if study.name in ("tables", "curves") or not conditions.exists():  # it is written last
            continue
        text = conditions.read_text(encoding="utf-8").strip()
        svg = for_page(figure.read_text(encoding="utf-8"), f"{study.title}, {study.paper}")
        found.append({"study": study, "svg": Markup(svg), "text": Markup(_MARKDOWN.render(text))})
    return found
