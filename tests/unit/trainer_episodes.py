"""Small episodes in the engine's words, for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Generic, TypeVar

import torch
from transformers import AutoModelForCausalLM

from agentprm.config import Scratch
from agentprm.prompts import PromptTemplate
from agentprm.protocol import (
    Action,
    Candidate,
    Episode,
    Game,
    Group,
    Preference,
    Provenance,
    Split,
    State,
    Turn,
)
from services.trainer.tiny import create_tiny
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.rows import action_row

T = TypeVar("T")

FIRST = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a fridge 1, "
    "and a sidetable 1.\n\nYour task is to: put a mug in cabinet."
)
ROOM = "You arrive at {}. On the {}, you see a mug 1, and an apple 2."


def episode(
    commands: Sequence[str], rewards: Sequence[float], game: str = "a", index: int = 0
) -> Episode:
    """An episode in which each command but the first follows the sight of `sidetable 1`."""
    turns = tuple(
        Turn(
            observation=FIRST if t == 0 else ROOM.format("sidetable 1", "sidetable 1"),
            action=Action(reason="find mug", command=command),
            reward=reward,
            policy_version="policy/0",
        )
        for t, (command, reward) in enumerate(zip(commands, rewards, strict=True))
    )
    return Episode(
        id=f"job/{index}",
        job_id="job",
        game=Game(
            id=f"train/{game}/trial",
            split=Split.TRAIN,
            task_type="pick_and_place_simple",
            task="put a mug in cabinet.",
        ),
        seed=index,
        turns=turns,
        final_observation="Nothing happens.",
        won=sum(rewards) > 0,
        provenance=Provenance(
            engine="test", package_version="0", data_version="0", template_hash="0"
        ),
    )


def in_eight_games(*played: tuple[list[str], list[float]]) -> list[Episode]:
    """In each of eight games one episode of each of these commands and rewards."""
    return [
        episode(commands, rewards, game=game, index=i)
        for i, (game, (commands, rewards)) in enumerate(product("abcdefgh", played))
    ]


LOOK_WINS = (["look", "go to cabinet 1"], [0.0, 1.0])
INVENTORY_LOSES = (["inventory", "go to fridge 1"], [0.0, 0.0])

STATES = [episode(["look"] * 6, [0] * 6).state(t) for t in range(6)]
GOOD = Action(reason="find mug", command="go to cabinet 1")
BAD = Action(reason="find mug", command="go to fridge 1")


def create_small(parent: Path) -> Path:
    """A model of some ten thousand parameters that reads the engine's words, below `parent`."""
    directory = parent / "small"
    create_tiny(directory, shape=Scratch(width=32, layers=2, heads=2, feed_forward=64))
    return directory


def altered(directory: Path, out: Path) -> Path:
    """Another policy: the weights of one, and noise, in `out`."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
    model.save_pretrained(out)
    return out


def group(state: State, scored: Sequence[tuple[Action, float, int]], name: str = "0") -> Group:
    """Candidates of a state, each with its Q and how often it was drawn."""
    q = [value for _, value, _ in scored]
    return Group(
        id=f"job/{name}",
        job_id="job",
        attempt="0",
        state=state,
        candidates=tuple(
            Candidate(text="", action=action, log_prob=-1.0, tokens=1, q=value, count=count)
            for action, value, count in scored
        ),
        chosen=q.index(max(q)),
        policy_version="policy/0",
        prm_version="prm/0",
        template_hash="0",
    )


def preference(state: State, chosen: Action, rejected: Action, name: str = "0") -> Preference:
    """One action of a state against another."""
    return Preference(
        id=f"job/{name}",
        job_id="job",
        attempt="0",
        state=state,
        chosen=chosen,
        rejected=rejected,
        chosen_q=0.9,
        rejected_q=0.1,
        policy_version="policy/0",
        prm_version="prm/0",
        template_hash="0",
    )


class Source(Generic[T]):
    """What `make` makes of `STATES`, without end or up to `last`; it knows how many were taken."""

    def __init__(self, make: Callable[[State, str], T], last: int | None = None) -> None:
        self.taken = 0
        self.last = last
        self._make = make

    def __iter__(self) -> Iterator[T]:
        while self.taken != self.last:
            self.taken += 1
            yield self._make(STATES[self.taken % len(STATES)], str(self.taken))


def preferences(last: int | None = None) -> Source[Preference]:
    """GOOD against BAD in all states."""
    return Source(lambda state, name: preference(state, GOOD, BAD, name), last)


def log_prob(directory: Path, prompt: PromptTemplate, state: State, action: Action) -> float:
    """log π(action | state), by plain transformers."""
    ids, (start, end) = action_row(load_tokenizer(directory), prompt, state, action)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(log_probs[i - 1, ids[i]].item() for i in range(start, end)))
