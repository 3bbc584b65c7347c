"""The search expert: solves games from the goal and the text alone.

It looks for a thing where such things tend to lie (`Placement`), cheap places first, and remembers
what it saw. Its REASON names the sub-goal, which follows from the goal and its own past actions and
from nothing it has read, so that even a very small model can learn to say it:

    find mug -> have mug . heat -> have mug . put in cabinet
    find cd -> have cd . use desklamp
    find cd -> have cd . put in safe
        -> one done . safe 1 . find cd -> one done . safe 1 . have cd . put in safe 1

The name of the place where the first of two things was put is in its own past actions too, and can
be copied from there.
"""

from __future__ import annotations

import math
import random
import re

from agentprm.environment import Frame
from agentprm.protocol import Action
from services.env.expert.base import ExpertError
from services.env.expert.goal import parse_goal
from services.env.games import Placement

NOISE = 0.3
"""Standard deviation of the noise on the log of a place's worth: episodes differ by their seed."""

_APPLIANCES = {
    "heat": ("microwave",),
    "cool": ("fridge",),
    "clean": ("sinkbasin", "bathtubbasin"),
}
_NAME = re.compile(r"\ba (\w+ \d+)")
_CONTENTS = re.compile(r"(?:On the (\w+ \d+)|The (\w+ \d+) is open\. In it), you see ([^.]*)\.")
_CLOSED = re.compile(r"The (\w+ \d+) is closed\.")


class SearchExpert:
    """Follows one episode of the task.

    Raises:
        ExpertError: the goal is not one of ALFWorld's templates.
    """

    def __init__(self, task: str, placement: Placement, seed: int) -> None:
        try:
            self._goal = parse_goal(task)
        except ValueError as error:
            raise ExpertError(str(error)) from error
        self._placement = placement
        self._random = random.Random(seed)
        self._noise: dict[str, float] = {}
        self._seen: dict[str, list[str]] = {}
        """What lies in or on each receptacle that was looked into."""
        self._closed: set[str] = set()
        self._admissible: tuple[str, ...] = ()
        self._holding: str | None = None
        self._taken_from: str | None = None
        self._treated: set[str] = set()
        self._placed: dict[str, str] = {}
        """Things put down where the goal wants them."""

    def observe(self, command: str | None, frame: Frame) -> None:
        """Remember what is where."""
        text = frame.observation
        if command is None:
            receptacles = _NAME.findall(text.split("Your task is to:")[0])
            self._noise = {r: self._random.gauss(0.0, NOISE) for r in receptacles}
        elif "Nothing happens" not in text:
            self._did(command.strip())
        for on, within, things in _CONTENTS.findall(text):
            self._seen[on or within] = _NAME.findall(things)
            self._closed.discard(on or within)
        self._closed.update(_CLOSED.findall(text))
        self._admissible = frame.admissible

    def act(self) -> Action:
        """The sub-goal and the command that serves it."""
        goal, holding = self._goal, self._holding
        first = next(iter(self._placed.values()), None)
        done = f"one done . {first} . " if first else ""
        if holding is None or _kind(holding) != goal.thing:
            return self._action(f"{done}find {goal.thing}", self._find())
        if goal.lamp is not None:
            return self._action(f"have {goal.thing} . use {goal.lamp}", self._use(goal.lamp))
        if goal.treatment is not None and holding not in self._treated:
            command = self._treat(goal.treatment, holding)
            return self._action(f"have {goal.thing} . {goal.treatment}", command)
        reason = f"{done}have {goal.thing} . put in {first or goal.place}"
        return self._action(reason, self._put(holding))

    # --- what is known --------------------------------------------------------------------------

    def _did(self, command: str) -> None:
        """Follow the own successful action."""
        words = command.split()
        name, verb = " ".join(words[1:3]), words[0]
        if verb == "take":
            self._holding, self._taken_from = name, " ".join(words[-2:])
            self._placed.pop(name, None)
            self._forget(name)
        elif verb in ("move", "put"):
            receptacle = " ".join(words[-2:])
            self._holding = None
            self._seen.setdefault(receptacle, []).append(name)
            if _kind(receptacle) == self._goal.place and _kind(name) == self._goal.thing:
                self._placed[name] = receptacle
        elif verb == self._goal.treatment:
            self._treated.add(name)
        elif verb == "close":
            self._closed.add(name)

    def _forget(self, thing: str) -> None:
        for things in self._seen.values():
            if thing in things:
                things.remove(thing)

    def _here(self, receptacle: str) -> bool:
        """Within reach: there is no going to any receptacle at the own location."""
        return f"go to {receptacle}" not in self._admissible

    def _holds(self, receptacle: str, kind: str) -> bool:
        return any(_kind(thing) == kind for thing in self._seen.get(receptacle, []))

    # --- sub-goals ------------------------------------------------------------------------------

    def _find(self) -> str | None:
        if self._holding is not None:  # the wrong thing: hands must be free
            return self._first("move ", "put ") or self._reach(str(self._taken_from))
        thing, place = self._goal.thing, self._goal.place
        where = {o: r for r, things in self._seen.items() for o in things if _kind(o) == thing}
        if self._goal.count == 2:
            where = _to_bring(where, str(place), set(self._placed.values()))
        for name, receptacle in sorted(where.items(), key=lambda item: not self._here(item[1])):
            if self._here(receptacle) and f"take {name} from {receptacle}" in self._admissible:
                return f"take {name} from {receptacle}"
            return self._reach(receptacle)
        return self._search(thing)

    def _use(self, lamp: str) -> str | None:
        """At the lamp, use it; where it was seen, go there; else look for it."""
        known = [r for r in self._noise if self._holds(r, lamp)]
        return (
            self._first(f"use {lamp} ")
            or next((f"go to {r}" for r in known if not self._here(r)), None)
            or self._search(lamp)
        )

    def _treat(self, treatment: str, thing: str) -> str | None:
        """Being at the appliance is enough, open or closed."""
        for kind in _APPLIANCES[treatment]:
            appliances = [r for r in self._noise if _kind(r) == kind]
            if appliances:
                nearest = min(appliances, key=lambda r: (not self._here(r), self._noise[r]))
                return self._first(f"{treatment} {thing} with ") or self._reach(nearest)
        return None

    def _put(self, thing: str) -> str | None:
        """Beside the first of two; else in the easiest receptacle of the kind."""
        goal = self._goal
        places = [r for r in self._noise if _kind(r) == goal.place]
        if not places:
            return None

        def cost(receptacle: str) -> tuple[bool, int, float]:
            other = goal.count == 2 and self._holds(receptacle, goal.thing)
            steps = (not self._here(receptacle)) + self._must_open(receptacle)
            return not other, steps, self._noise[receptacle]

        best = min(places, key=cost)
        for command in (f"move {thing} to {best}", f"put {thing} in/on {best}"):
            if command in self._admissible:
                return command
        return self._reach(best)

    def _search(self, kind: str) -> str | None:
        """Where P(found) for the steps that looking takes is best, among places not yet seen."""
        unseen = [r for r in self._noise if r not in self._seen]
        if not unseen:
            return None

        def worth(receptacle: str) -> float:
            steps = 1 + self._must_open(receptacle)
            if self._here(receptacle) and receptacle in self._closed:
                steps = 1
            p = self._placement.p(kind, _kind(receptacle))
            return math.log(p / steps) + self._noise[receptacle]

        return self._reach(max(unseen, key=worth))

    # --- commands -------------------------------------------------------------------------------

    def _must_open(self, receptacle: str) -> bool:
        unknown = receptacle not in self._seen
        return receptacle in self._closed or (
            unknown and _kind(receptacle) in self._placement.openable
        )

    def _reach(self, receptacle: str) -> str:
        """Go there; once there, open it or look at it."""
        for command in (f"go to {receptacle}", f"open {receptacle}"):
            if command in self._admissible:
                return command
        return f"examine {receptacle}"

    def _first(self, *prefixes: str) -> str | None:
        """The first admissible command that begins with one of `prefixes`."""
        return next((c for c in self._admissible if c.startswith(prefixes)), None)

    def _action(self, reason: str, command: str | None) -> Action:
        """The action; `look` where the expert is at its wits' end."""
        if command is None or command not in self._admissible:
            command = "look"
        return Action(reason=reason, command=command)


def _kind(name: str) -> str:
    return name.split(" ", 1)[0]


def _to_bring(where: dict[str, str], place: str, chosen: set[str]) -> dict[str, str]:
    """Of the things seen, those to carry for a goal of two in one receptacle.

    Things that lie in a receptacle of the right kind stay there, and the other is put beside them;
    only if there are several of these is one of them moved.
    """
    outside = {o: r for o, r in where.items() if _kind(r) != place}
    if outside:
        return outside
    inside = {o: r for o, r in where.items() if r not in chosen}
    return inside if len(set(where.values())) > 1 else {}
