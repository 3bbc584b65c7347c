"""A game's grammar, compiled: how moves are typed and answered, and the first observation.

Thousands of games share one grammar but for the task sentence, so it is compiled once around it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache

from services.env.engine.compiled.commands import PARAMETERS, PLACES
from services.env.engine.compiled.errors import Malformed
from services.env.engine.compiled.grammar import Literal, parse_grammar, parse_right
from services.env.engine.compiled.text import Compiler, Render

_TASK = re.compile(r'"task"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*"((?:[^"\\]|\\.)*)"\s*\}\s*\]')


@dataclass(frozen=True)
class Script:
    """What is typed and answered, by action; and `#intro#`."""

    templates: dict[str, Render]
    feedback: dict[str, Render]
    intro: Render


def read_script(grammar: str, actions: frozenset[str]) -> tuple[Script, str]:
    """The script for these actions, and the paragraph that states the task.

    Raises:
        Malformed: the grammar cannot be read, lacks one of them, or asks for what this engine does
            not keep.
    """
    task = _TASK.search(grammar)
    if task is None:
        raise Malformed("its grammar has no task sentence")
    return _script(grammar[: task.start()], grammar[task.end() :], actions), _task_text(task[1])


def _task_text(quoted: str) -> str:
    """The text of a right-hand side without symbols, given between its JSON quotes."""
    try:
        right = json.loads(f'"{quoted}"')
    except ValueError as error:
        raise Malformed(f"its task sentence is no JSON string ({error})") from error
    texts = []
    for symbol in parse_right(right):
        if not isinstance(symbol, Literal):
            raise Malformed("its task sentence is more than text")
        texts.append(symbol.text)
    return "".join(texts)


@lru_cache(maxsize=16)
def _script(before: str, after: str, actions: frozenset[str]) -> Script:
    """Compile a grammar around the task sentence, which alone differs between games."""
    grammar = parse_grammar(f'{before}"task": [{{"rhs": ""}}]{after}')
    missing = actions - grammar.actions.keys()
    if missing:
        raise Malformed(f"its grammar lacks the action {min(missing)}")
    told = Compiler(grammar, {"task": lambda state, _: state.game.task_text})
    typed = Compiler(grammar, {}, static=True)
    bound = {verb: frozenset(PARAMETERS[verb]) for verb in actions}
    texts = {verb: grammar.actions[verb] for verb in actions}
    return Script(
        templates={
            verb: typed.right(x.template, bound[verb] - PLACES) for verb, x in texts.items()
        },
        feedback={verb: told.right(x.feedback, bound[verb]) for verb, x in texts.items()},
        intro=told.symbol("intro", frozenset()),
    )
