"""How like the real games generated ones are, in figures.

    python -m benchmarks.realism --real DIR --generated DIR --json

Measures one split of each, the train split unless told otherwise. The search expert plays a seeded
sample of both, knowing of both what the real train split says about where things lie.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import correlation, mean, median, stdev
from typing import Annotated

import orjson
import structlog
import typer
from rich.console import Console
from rich.table import Table

from agentprm.protocol import Game, Split
from services.env.engine.compiled import CompiledGame, GameFileError
from services.env.expert.base import ExpertError
from services.env.games.index import DataError, GameIndex
from services.env.games.initial import Initial, read_initial
from services.env.games.placement import Placement
from services.env.games.solve import solve

STEPS = 50
Shares = dict[tuple[str, str], float]
"""By (object type, receptacle type): the share of the objects that lie in such receptacles."""


@dataclass(frozen=True)
class Measures:
    """One split in figures. Means are per game, with standard deviations over games."""

    games: int
    receptacles: float
    receptacles_sd: float
    receptacles_per_place: float
    objects: float
    objects_sd: float
    takeable: float
    in_receptacles: float
    """The share of takeable objects that lie in a receptacle."""
    task_mix: dict[str, float]
    expert_games: int
    expert_wins: float
    """The share won within 50 commands."""
    expert_mean: float
    """Commands of a game won; as are the next two."""
    expert_median: float
    expert_p90: float


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of the shares with the real ones.

    Over all pairs of types that occur in either, and by object type over the receptacle types that
    occur in either, for object types with at least 20 objects in both and three such receptacles.
    """

    pairs: int
    overall: float
    types: int
    by_type_median: float
    by_type_lowest: float
    types_below_0_6: list[str]


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation, tied values sharing their mean rank; 0 where one side is constant."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    return correlation(_ranks(one), _ranks(other))


def agreement(real: Counter[tuple[str, str]], generated: Counter[tuple[str, str]]) -> Agreement:
    """Compare how often objects of a type lie in receptacles of a type."""
    pairs = sorted(real.keys() | generated.keys())
    one, other = _shares(real), _shares(generated)
    receptacles: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in pairs:
        receptacles[pair[0]].append(pair)

    def compare(some: list[tuple[str, str]]) -> float:
        return spearman([one.get(p, 0.0) for p in some], [other.get(p, 0.0) for p in some])

    by_type = {
        thing: compare(mine)
        for thing, mine in receptacles.items()
        if len(mine) >= 3 and min(sum(c[p] for p in mine) for c in (real, generated)) >= 20
    }
    return Agreement(
        pairs=len(pairs),
        overall=round(compare(pairs), 3),
        types=len(by_type),
        by_type_median=round(median(by_type.values()), 3) if by_type else 0.0,
        by_type_lowest=round(min(by_type.values()), 3) if by_type else 0.0,
        types_below_0_6=sorted(thing for thing, value in by_type.items() if value < 0.6),
    )


def measure(
    index: GameIndex, split: Split, placement: Placement, *, sample: int, seed: int
) -> tuple[Measures, Counter[tuple[str, str]]]:
    """The figures of a split, and how many objects of a type lie in receptacles of a type.

    Raises:
        DataError: there are no games of the split.
        GameFileError: a game of the sample cannot be played.
        ExpertError: the goal of one is not one of ALFWorld's templates.
    """
    games = index.select(split)
    if not games:
        raise DataError(f"no games of {split} in {index.root}")
    initials = [_initial(index, game) for game in games]
    pairs: Counter[tuple[str, str]] = Counter()
    for initial in initials:
        pairs.update((initial.objects[x], initial.receptacles[r]) for x, r in initial.contents)
    played = random.Random(seed).sample(games, min(sample, len(games)))
    solutions = [
        solve(CompiledGame.parse(index.path(game)), placement, seed, STEPS) for game in played
    ]
    lengths = sorted(len(commands) for commands in solutions if commands is not None)
    kinds = Counter(game.task_type for game in games)

    def each(count: Callable[[Initial], int]) -> list[int]:
        return [count(initial) for initial in initials]

    receptacles, objects = each(lambda x: len(x.receptacles)), each(lambda x: len(x.objects))
    takeable = each(lambda x: len(x.pickupable))
    lying = each(lambda x: len({thing for thing, _ in x.contents} & x.pickupable))
    places = each(lambda x: len(set(x.places.values())))
    measures = Measures(
        games=len(games),
        receptacles=round(mean(receptacles), 1),
        receptacles_sd=round(stdev(receptacles), 1) if len(games) > 1 else 0.0,
        receptacles_per_place=round(sum(receptacles) / sum(places), 2),
        objects=round(mean(objects), 1),
        objects_sd=round(stdev(objects), 1) if len(games) > 1 else 0.0,
        takeable=round(mean(takeable), 1),
        in_receptacles=round(sum(lying) / sum(takeable), 3),
        task_mix={kind: round(n / len(games), 3) for kind, n in sorted(kinds.items())},
        expert_games=len(played),
        expert_wins=round(len(lengths) / len(played), 3),
        expert_mean=round(mean(lengths), 1) if lengths else 0.0,
        expert_median=median(lengths) if lengths else 0.0,
        expert_p90=lengths[int(0.9 * (len(lengths) - 1))] if lengths else 0.0,
    )
    return measures, pairs


def _initial(index: GameIndex, game: Game) -> Initial:
    return read_initial(orjson.loads(index.path(game).read_bytes())["pddl_problem"])


def _shares(pairs: Counter[tuple[str, str]]) -> Shares:
    totals: Counter[str] = Counter()
    for (thing, _), count in pairs.items():
        totals[thing] += count
    return {(thing, place): n / totals[thing] for (thing, place), n in pairs.items()}


def _ranks(values: Sequence[float]) -> list[float]:
    at: defaultdict[float, list[int]] = defaultdict(list)
    for rank, value in enumerate(sorted(values)):
        at[value].append(rank)
    return [mean(at[value]) for value in values]


def main(
    real: Annotated[Path, typer.Option(help="directory of real games")],
    generated: Annotated[Path, typer.Option(help="directory of generated games")],
    split: Annotated[Split, typer.Option(help="split of the real games")] = Split.TRAIN,
    generated_split: Annotated[
        Split | None, typer.Option(help="split of the generated games, by default the same")
    ] = None,
    sample: Annotated[int, typer.Option(help="games the expert plays, of each", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="draws these games, and seeds the expert")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on stdout")] = False,
) -> None:
    """Compare generated games with real ones."""
    other_split = generated_split or split
    try:
        real_index, other_index = GameIndex.open(real), GameIndex.open(generated)
        placement = real_index.placement
        one, pairs = measure(real_index, split, placement, sample=sample, seed=seed)
        other, others = measure(other_index, other_split, placement, sample=sample, seed=seed)
    except (DataError, ExpertError, GameFileError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False)
        raise typer.Exit(2) from error
    agreed = asdict(agreement(pairs, others))
    conditions = {"split": split, "generated_split": other_split, "seed": seed, "steps": STEPS}
    if as_json:
        report = {"conditions": conditions, "real": asdict(one), "generated": asdict(other)}
        typer.echo(orjson.dumps({**report, "agreement": agreed}))
        return
    table = Table("", "real", "generated", title=str(conditions))
    for name, value in asdict(one).items():
        table.add_row(name, str(value), str(asdict(other)[name]))
    Console().print(table, agreed)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    typer.run(main)
