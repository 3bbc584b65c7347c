"""The process that plays TextWorld games for the pool: one game at a time, told what over a pipe.

Messages are JSON objects both ways. `{"op": "reset", "game": path}` and `{"op": "step", "command":
c}` answer a frame, `{"op": "hidden"}` the hidden state; a failure answers `{"error": text}`. The
process ends when the pipe closes, so none outlives the service, however that ended.
"""

from __future__ import annotations

import random
import signal
from multiprocessing.connection import Connection
from typing import Any

import orjson
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from alfworld.agents.expert import HandCodedTWAgent
from textworld.envs.pddl import PddlEnv

EXPERT_STEPS = 200
"""The handcoded expert gives up after so many; past them it only looks."""


def main(connection: Connection, handcoded: bool) -> None:
    """Answer requests until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which closes the pipe
    player = _Player(handcoded)
    while True:
        try:
            request = orjson.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer = player.answer(request)
        except Exception as error:  # whatever TextWorld raises becomes an answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        connection.send_bytes(orjson.dumps(answer))


class _Player:
    def __init__(self, handcoded: bool) -> None:
        infos = textworld.EnvInfos(
            feedback=True, admissible_commands=True, won=True, facts=handcoded
        )
        self._env = AlfredDemangler(PddlEnv(infos), shuffle=False)
        self._expert = _Handcoded() if handcoded else None
        self._state: Any = None

    def answer(self, request: dict[str, str]) -> dict[str, Any]:
        match request["op"]:
            case "reset":
                self._env.load(request["game"])
                self._state = self._env.reset()
                advice = self._expert.reset(request["game"], self._state) if self._expert else None
                return self._frame(0.0, advice)
            case "step":
                command = request["command"]
                self._state, reward, _ = self._env.step(command)
                advice = self._expert.act(self._state, command) if self._expert else None
                return self._frame(reward, advice)
            case "hidden":
                return _hidden(self._state)
            case op:
                raise ValueError(f"unknown op {op!r}")

    def _frame(self, reward: float, advice: str | None) -> dict[str, Any]:
        won = bool(self._state["won"])
        return {
            "observation": self._state.feedback,
            "admissible": self._state["admissible_commands"],
            "reward": float(reward),
            "done": won,
            "won": won,
            "advice": advice,
        }


class _Handcoded:
    """alfworld's handcoded expert, driven as its own `AlfredExpert` wrapper drives it."""

    def reset(self, game: str, state: Any) -> str:
        random.seed(0)  # the expert draws from the global generator: replays must repeat
        self._agent = HandCodedTWAgent(max_steps=EXPERT_STEPS)
        self._agent.reset(game)
        self._agent.observe(state.feedback)
        return "look"

    def act(self, state: Any, command: str) -> str:
        try:
            advice: str = self._agent.act(state, 0, state["won"], command)
        except Exception:  # it gives up, or loses its way after commands that it would not give
            return "look"
        return advice if advice in state["admissible_commands"] else "look"


def _hidden(state: Any) -> dict[str, Any]:
    """The facts that say where things are, by the names the agent reads."""
    names = {key: info.name.strip() for key, info in state["_entity_infos"].items()}
    facts: dict[str, list[Any]] = {}
    for fact in state["_facts"]:
        facts.setdefault(fact.name, []).append(tuple(names[a.name] for a in fact.arguments))

    def ones(predicate: str) -> list[str]:
        return sorted(arguments[0] for arguments in facts.get(predicate, []))

    held = [arguments[-1] for arguments in facts.get("holds", [])]
    here = {arguments[-1] for arguments in facts.get("atlocation", [])}
    reach = [r for r, location in facts.get("receptacleatlocation", []) if location in here]
    return {
        "agent": sorted(reach),
        "holding": held[0] if held else None,
        "objects": dict(sorted(facts.get("inreceptacle", []))),
        "open": ones("opened"),
        "hot": ones("ishot"),
        "cool": ones("iscool"),
        "clean": ones("isclean"),
        "on": ones("istoggled"),
    }
