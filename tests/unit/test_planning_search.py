"""The search against trees that are worked out by hand, and against all paths of random ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from agentprm.protocol import Action, Candidate, Lookahead, Session, State, Turn
from services.rollout.planning import Arrival, Model, Place, search


@dataclass(frozen=True)
class Edge:
    """An action: the PRM's Q, and in truth its reward and where it leads (None: the end)."""

    q: float
    reward: float = 0.0
    to: str | None = None


# By hand, with γ = 0.5:
#   Q_1: a 0.6, b 0.5, c 0.4                                            -> a
#   Q_2: a .5·max(.2, .3) = .15, b .5·max(.8, .1) = .4, c ends with 0   -> b
#   Q_3: a .5·max(1, .5·.3) = .5, b .5·max(.5·.2, .5·.1) = .05, c 0     -> a
HAND = {
    "s": {"a": Edge(0.6, to="A"), "b": Edge(0.5, to="B"), "c": Edge(0.4)},
    "A": {"win": Edge(0.2, reward=1.0), "x": Edge(0.3, to="C")},
    "B": {"y": Edge(0.8, to="D"), "z": Edge(0.1, to="E")},
    "C": {"x": Edge(0.3)},
    "D": {"y": Edge(0.2)},
    "E": {"z": Edge(0.1)},
}
Tree = dict[str, dict[str, Edge]]


@dataclass
class TreeModel(Model[str]):
    tree: Tree
    silent: set[str] = field(default_factory=set)
    """Commands whose outcome it does not tell."""

    def root(self, session: Session, turns: Sequence[Turn]) -> Place[str]:
        raise NotImplementedError

    def step(self, moves: Sequence[tuple[Place[str], Action]]) -> list[Arrival[str] | None]:
        return [
            None if action.command in self.silent else self._arrival(place.handle, action.command)
            for place, action in moves
        ]

    def _arrival(self, at: str, command: str) -> Arrival[str]:
        edge = self.tree[at][command]
        return Arrival(edge.reward, None if edge.to is None else place_of(edge.to))


def place_of(name: str) -> Place[str]:
    return Place(State(task="t", observation=name), 9, name)


def best(tree: Tree, plan: Lookahead, silent: set[str] | None = None) -> tuple[str, float]:
    """The command and its value; every sample is an action of its own."""
    widths: list[int] = []

    def expand(states: Sequence[State], n: int, level: int) -> list[list[Candidate]]:
        widths.append(n)
        return [
            [
                Candidate(
                    text=command,
                    action=Action(command=command),
                    log_prob=-1.0,
                    tokens=1,
                    q=edge.q,
                )
                for command, edge in list(tree[state.observation].items())[:n]
            ]
            for state in states
        ]

    (choice,) = search([place_of("s")], TreeModel(tree, silent or set()), expand, plan)
    assert widths == plan.widths
    return choice.candidate.action.command, choice.search.value


def assert_best(
    tree: Tree, plan: Lookahead, command: str, value: float, silent: set[str] | None = None
) -> None:
    found, worth = best(tree, plan, silent)
    assert found == command
    assert worth == pytest.approx(value)


def plan(depth: int, gamma: float = 0.5, **more: object) -> Lookahead:
    values = {"width": 3, "model": "true", **more}
    return Lookahead.model_validate({"depth": depth, "gamma": gamma, **values})


@pytest.mark.parametrize(
    ("depth", "command", "value"), [(1, "a", 0.6), (2, "b", 0.4), (3, "a", 0.5), (4, "a", 0.5)]
)
def test_a_tree_worked_out_by_hand(depth: int, command: str, value: float) -> None:
    assert_best(HAND, plan(depth), command, value)


def test_the_discount_decides_between_a_near_and_a_far_reward() -> None:
    tree = {
        "s": {"near": Edge(0.1, to="N"), "far": Edge(0.1, to="F")},
        "N": {"x": Edge(0.1, reward=0.5)},
        "F": {"x": Edge(0.1, to="G")},
        "G": {"x": Edge(0.1, reward=0.8)},
    }
    assert_best(tree, plan(4, gamma=0.5), "near", 0.25)
    assert_best(tree, plan(4, gamma=0.9), "far", 0.9**2 * 0.8)


def test_what_the_model_cannot_tell_is_worth_its_q() -> None:
    assert_best(HAND, plan(2), "a", 0.6, silent={"a"})
    assert_best(HAND, plan(2), "b", 0.4, silent={"c"})  # of equal values the one of larger Q


def test_a_state_in_which_the_policy_has_nothing_to_do_is_worth_the_q_that_led_there() -> None:
    tree = HAND | {"A": {}}
    assert_best(tree, plan(2), "a", 0.6)
    assert_best(tree, plan(3), "a", 0.6)


def test_plans_take_one_action_after_the_first() -> None:
    """In A the first of the two is the win; in B it is y, worth Q = 0.8 · γ."""
    assert plan(3, shape="plans").widths == [3, 1, 1]
    assert_best(HAND, plan(2, shape="plans"), "b", 0.4)
    assert_best(HAND, plan(3, shape="plans"), "a", 0.5)


def test_the_value_is_the_best_of_all_paths() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        tree = random_tree(rng)
        gamma, depth = rng.uniform(0.3, 1.0), 1 + seed % 4
        values = {first: best_path(tree, first, depth, gamma) for first in tree["s"]}
        command, value = best(tree, plan(depth, gamma=gamma))
        assert value == pytest.approx(max(values.values()))
        assert values[command] == pytest.approx(value)


def random_tree(rng: random.Random) -> Tree:
    names = [f"n{k}" for k in range(12)]

    def edges(deeper: Sequence[str]) -> dict[str, Edge]:
        return {
            command: Edge(rng.random(), rng.choice([0.0, 0.0, rng.random()]), to)
            for command in "abc"
            for to in [rng.choice([*deeper, None]) if deeper else None]
        }

    return {"s": edges(names)} | {name: edges(names[k + 1 :]) for k, name in enumerate(names)}


def best_path(tree: Tree, first: str, depth: int, gamma: float) -> float:
    """Over all sequences of `depth` commands: Σ γ^k r_k up to the end, or γ^(d-1) Q at the last."""
    found = []
    for rest in itertools.product("abc", repeat=depth - 1):
        at: str | None = "s"
        total = 0.0
        for k, command in enumerate((first, *rest)):
            assert at is not None
            edge = tree[at][command]
            if k == depth - 1:
                total += gamma**k * edge.q
                break
            total += gamma**k * edge.reward
            at = edge.to
            if at is None:
                break
        found.append(total)
    return max(found)


def test_a_search_counts_what_it_took() -> None:
    """At depth 3: s, A, B, C, D, E; all branches of s, A and B are asked for, but not the last."""

    def expand(states: Sequence[State], n: int, level: int) -> list[list[Candidate]]:
        return [
            [
                Candidate(text=c, action=Action(command=c), log_prob=0.0, tokens=1, q=edge.q)
                for c, edge in HAND[state.observation].items()
            ]
            for state in states
        ]

    (choice,) = search([place_of("s")], TreeModel(HAND, {"z"}), expand, plan(3))
    took = choice.search
    assert (took.states, took.transitions, took.unknown) == (5, 7, 1)


def test_a_candidate_without_a_score_is_an_error() -> None:
    def expand(states: Sequence[State], n: int, level: int) -> list[list[Candidate]]:
        return [[Candidate(text="a", action=Action(command="a"), log_prob=0.0, tokens=1)]]

    with pytest.raises(ValueError, match="no score"):
        search([place_of("s")], TreeModel(HAND), expand, plan(1))


def test_a_search_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="leaf states"):
        plan(6, width=4)
    with pytest.raises(ValueError, match="learned model"):
        plan(2, model="learned")
    assert plan(6, width=4, shape="plans").widths == [4, 1, 1, 1, 1, 1]
