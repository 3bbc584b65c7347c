"""A run directory as training leaves it, with few and invented numbers: for what reads one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import orjson

from agentprm.config import Config, load_config
from agentprm.facts import METADATA
from agentprm.protocol import (
    Action,
    Calibration,
    Considered,
    Episode,
    Game,
    JobResult,
    Provenance,
    ReliabilityBin,
    Sampling,
    Split,
    Turn,
)
from agentprm.registry import Registry
from agentprm.results import summarise, write_results

GAMES = 12
"""That an evaluation plays."""
TASKS = ("pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep")
SEEN = (
    "You arrive at cabinet 1. On the cabinet 1, you see a mug 1, and a <script>alert(1)</script>."
)


def finished_run(run: Path, *, overrides: dict[str, Any] | None = None) -> Config:
    """Fill `run` as a run of one iteration does; its settings."""
    config = load_config("smoke", overrides={"iterations": 1, **(overrides or {})})
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(config.model_dump_json(indent=2))
    wins = {("pi_0", None): 4, ("pi_0", "q_0"): 6, ("pi_1", None): 7, ("pi_1", "q_0"): 9}
    rows = []
    for (policy, prm), won in wins.items():
        stage = f"eval-{policy}" if prm is None else f"eval-{policy}-{prm}"
        episodes = [
            _episode(stage, k, won=k >= GAMES - won, steered=bool(prm)) for k in range(GAMES)
        ]
        record(run, stage, episodes)
        rows.append(summarise(episodes, policy=policy, prm=prm, max_steps=30, seed=0))
    record(run, "demonstrations", [_episode("demonstrations", 0, won=True)])
    record(run, "pi_0-rollouts", [_episode("pi_0-rollouts", k, won=k % 2 == 0) for k in range(4)])
    write_results(run, rows)
    checkpoints(run)
    lines = [{"stage": "pi_0", "step": 0, "stage_seconds": 65.0}]
    lines += [{"stage": "pi_0-rollouts", "step": 0, "stage_seconds": 20.5}]
    content = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    (run / "metrics.jsonl").write_bytes(content)
    return config


def record(run: Path, stage: str, episodes: list[Episode]) -> None:
    """Write the episodes down as the trainer does."""
    (run / "records").mkdir(exist_ok=True)
    result = JobResult(job_id=f"{stage}-0000", worker="w", seconds=1.0, episodes=episodes)
    (run / "records" / f"{stage}.jsonl").write_text(result.model_dump_json() + "\n")


def checkpoints(run: Path) -> None:
    """π_0, π_1 and Q_0: no weights, but what is said beside them."""
    bins = [
        ReliabilityBin(
            low=k / 10,
            high=(k + 1) / 10,
            turns=10 * (10 - k),
            mean_q=k / 10 + 0.05,
            mean_target=min(1.0, 0.02 + k / 11),
            won=k / 10,
        )
        for k in range(10)
    ]
    calibration = Calibration(ece=0.04, turns=550, games=6, bins=bins).model_dump(mode="json")
    facts: dict[str, dict[str, Any]] = {
        "policy/0": {"kind": "sft", "metrics": {"loss": 0.9, "steps": 240.0}},
        "prm/0": {"kind": "prm", "calibration": calibration, "metrics": {"val_auc": 0.8}},
        "policy/1": {"kind": "dpo", "metrics": {"steps": 30.0, "margin": 0.4, "accuracy": 0.7}},
    }
    registry = Registry(run / "checkpoints")
    for version, known in facts.items():
        with registry.write(version) as draft:
            (draft / METADATA).write_bytes(orjson.dumps(known))


def _episode(stage: str, k: int, *, won: bool, steered: bool = False) -> Episode:
    rng = random.Random(f"{stage}/{k}")
    length = 4 + k % 3 if won else 30
    turns = tuple(
        _turn(rng, reward=float(won and t == length - 1), steered=steered) for t in range(length)
    )
    return Episode(
        id=f"{stage}-0000/{k}",
        job_id=f"{stage}-0000",
        game=Game(
            id=f"valid_seen/{k}",
            split=Split.VALID_SEEN,
            task_type=TASKS[k % 3],
            task="put a mug in cabinet.",
        ),
        seed=k,
        turns=turns,
        final_observation="You move the mug 1 to the cabinet 1." if won else "Nothing happens.",
        won=won,
        provenance=Provenance(
            engine="compiled 1",
            package_version="0.1.0",
            data_version="2.1.1",
            template_hash="0123456789ab",
            sampling=Sampling(temperature=0.5),
            best_of=8 if steered else 1,
        ),
    )


def _turn(rng: random.Random, *, reward: float, steered: bool) -> Turn:
    commands = ["go to cabinet 1", "open cabinet 1", "take mug 1 from cabinet 1", "look"]
    scored = [
        Considered(action=Action(reason="find mug", command=command), q=rng.random(), count=2)
        for command in commands
    ]
    best = max(scored, key=lambda c: c.q or 0)
    return Turn(
        observation=SEEN,
        action=best.action,
        reward=reward,
        q=best.q if steered else None,
        considered=tuple(scored) if steered else (),
        policy_version="policy/0",
        prm_version="prm/0" if steered else None,
    )
