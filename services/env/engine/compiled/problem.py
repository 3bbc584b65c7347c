"""The PDDL problem of a game: declared objects, initial facts, the goal as an expression.

Reads what ALFWorld writes: typed objects, ground atoms, numeric assignments (of no effect on play).
PDDL does not distinguish case; the reference translates everything to lower case first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.env.engine.compiled.errors import Malformed
from services.env.engine.compiled.pddl import tokens, without_comments

Expression = str | list["Expression"]
Fact = tuple[str, list[str]]

_ASSIGNMENT = re.compile(r"\(\s*=\s*\([^()]*\)[^()]*\)")
_ATOM = re.compile(r"\(\s*([^\s()]+)([^()]*)\)")


@dataclass(frozen=True)
class Problem:
    """Object types by name; facts as (predicate, arguments); the goal."""

    types: dict[str, str]
    facts: list[Fact]
    goal: Expression


def parse_problem(text: str) -> Problem:
    """What the text of a problem declares, begins with and asks for.

    Raises:
        Malformed: a section is missing, cut off or not what ALFWorld writes.
    """
    text = text.lower()
    if ";" in text:
        text = without_comments(text)
    objects_at, init_at, goal_at = (text.find(f"(:{part}") for part in ("objects", "init", "goal"))
    if not 0 <= objects_at < init_at < goal_at:
        raise Malformed("its PDDL problem lacks :objects, :init or :goal, or is cut off")
    types = _objects(text[objects_at + len("(:objects") : init_at])
    facts = _facts(text[init_at + len("(:init") : goal_at])
    section, *_ = parse_expression(text[goal_at:])
    if len(section) != 2:
        raise Malformed("its :goal is not one expression")
    return Problem(types, facts, section[1])


def _objects(section: str) -> dict[str, str]:
    body, closed, rest = section.partition(")")
    if not closed or rest.strip():
        raise Malformed("its :objects section does not end")
    types: dict[str, str] = {}
    names: list[str] = []
    words = iter(body.split())
    for word in words:
        if word != "-":
            names.append(word)
            continue
        kind = next(words, None)
        if kind is None:
            raise Malformed("its :objects section ends without a type")
        types.update(dict.fromkeys(names, kind))
        names.clear()
    if names:
        raise Malformed(f"the object {names[0]} has no type")
    return types


def _facts(section: str) -> list[Fact]:
    if "(=" in section or "( =" in section:
        section = _ASSIGNMENT.sub("", section)
    atoms = _ATOM.findall(section)
    # One more closing parenthesis: that of the section itself.
    if section.count("(") != len(atoms) or section.count(")") != len(atoms) + 1:
        raise Malformed("its :init section is cut off or holds more than ground facts")
    # ALFWorld repeats what a kind of receptacle can contain once per receptacle.
    return [(predicate, arguments.split()) for predicate, arguments in set(atoms)]


def parse_expression(text: str) -> list[Expression]:
    """Read the one parenthesised expression that `text` starts with; the rest may only close.

    Raises:
        Malformed: there is none, or it is cut off.
    """
    stack: list[list[Expression]] = [[]]
    for token in tokens(text):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                continue
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or not stack[0] or not isinstance(stack[0][0], list):
        raise Malformed("an expression is cut off")
    return stack[0]
