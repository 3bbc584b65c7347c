"""Episodes worth reading: a game before and after training, one that was won, one that was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentprm.protocol import Considered, Episode, Turn
from agentprm.results import Row
from agentprm.runs import evaluation_stage, read_episodes


@dataclass(frozen=True)
class Told:
    """An episode, and who played it."""

    player: str
    episode: Episode


@dataclass(frozen=True)
class Story:
    """Episodes that are read side by side."""

    title: str
    told: list[Told]


def find_stories(run: Path, rows: Sequence[Row]) -> list[Story]:
    """The shortest of each kind that there is; which ones does not hang on chance."""
    if not rows:
        return []
    steered = [row for row in rows if row.prm is not None]
    last = (steered or list(rows))[-1]
    before = _by_game(run, rows[0])
    after = _by_game(run, last)
    won = sorted((e for e in after.values() if e.won), key=_length)
    lost = sorted((e for e in after.values() if not e.won), key=_length)
    turned = [e for e in won if e.game.id in before and not before[e.game.id].won]
    stories = []
    if turned:
        first = Told(rows[0].name, before[turned[0].game.id])
        told = [first, Told(last.name, turned[0])]
        stories.append(Story("The same game before and after training", told))
    rest = [episode for episode in won if episode not in turned[:1]]
    others = [Told(last.name, episode) for episode in (*rest[:1], *lost[:1])]
    return [*stories, *([Story("Won and lost", others)] if others else [])]


def ranked(turn: Turn) -> list[Considered]:
    """The candidates of a turn, the best first."""
    return sorted(turn.considered, key=lambda c: -1.0 if c.q is None else c.q, reverse=True)


def highest_q(episode: Episode) -> float:
    """The highest Q of any candidate of an episode, which bars are drawn against.

    1 where there is none, or none but 0.
    """
    given = [c.q for turn in episode.turns for c in turn.considered if c.q is not None]
    return max(given, default=1.0) or 1.0


def _by_game(run: Path, row: Row) -> dict[str, Episode]:
    stage = evaluation_stage(row.policy, row.prm)
    return {episode.game.id: episode for episode in read_episodes(run, stage)}


def _length(episode: Episode) -> tuple[int, str]:
    return len(episode.turns), episode.game.id
