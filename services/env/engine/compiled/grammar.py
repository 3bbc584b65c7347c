"""TextWorld's text grammar (`.twl2`) as data: actions with templates, and production rules.

A document is a list of blocks `grammar :: JSON` and `action NAME { template :: "..."; ... }`.
A right-hand side mixes literal text, `#symbol#`, `{expression}`, `{expression | query}` and
`[{expression | query}]`, a list in prose. What TextWorld's parser does at the edges is kept: white
space at the start of a right-hand side vanishes, and text after what it cannot read is dropped.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from services.env.engine.compiled.errors import Malformed

Variable = tuple[str, str]


@dataclass(frozen=True)
class Atom:
    """`predicate(variable: type, ...)` in a query; variables as (name, type)."""

    predicate: str
    variables: tuple[Variable, ...]


Query = tuple[Atom, ...]


@dataclass(frozen=True)
class Literal:
    """Text as it is."""

    text: str


@dataclass(frozen=True)
class Reference:
    """`#symbol#`."""

    symbol: str


@dataclass(frozen=True)
class Expression:
    """Python over entities, as `o.indefinite + ' ' + o.name`."""

    source: str


@dataclass(frozen=True)
class Each:
    """`{item | query}`: the item for every answer, in order; as prose if it stood in `[...]`."""

    item: Reference | Expression
    query: Query | None
    prose: bool


Symbol = Literal | Reference | Each


@dataclass(frozen=True)
class Rule:
    """One production of a symbol; it applies if its condition has an answer."""

    condition: Query | None
    right: str


@dataclass(frozen=True)
class ActionText:
    """How an action is typed, and what is answered."""

    template: str
    feedback: str


@dataclass(frozen=True)
class Grammar:
    """A parsed document: actions by lower-case name, rules by symbol in order of preference."""

    actions: dict[str, ActionText]
    rules: dict[str, list[Rule]]


_SKIP = re.compile(r"(?:\s+|#[^\n]*)*")
_BLOCK = re.compile(r'grammar\s*::\s*"""(.*?)"""\s*;', re.DOTALL)
_ACTION = re.compile(r"action\s+([\w/-]+)\s*\{")
_FIELD = re.compile(
    r'(template|feedback)\s*::\s*"([^"]*)"\s*;|(grammar|pddl)\s*::\s*"""(.*?)"""\s*;', re.DOTALL
)


def parse_grammar(text: str) -> Grammar:
    """The actions and the rules of a document.

    Raises:
        Malformed: TextWorld could not read it either.
    """
    actions: dict[str, ActionText] = {}
    rules: dict[str, list[Rule]] = {}
    at = _skip(text, 0)
    while at < len(text):
        if block := _BLOCK.match(text, at):
            rules.update(_rules(block[1]))
            at = _skip(text, block.end())
        elif action := _ACTION.match(text, at):
            name = action[1].lower()
            fields, at = _fields(text, action.end(), name)
            actions[name] = ActionText(fields["template"], fields["feedback"])
            if "grammar" in fields:
                lines = fields["grammar"].split("\n")
                rules.update(_rules("\n".join(x for x in lines if not x.lstrip().startswith("#"))))
        else:
            line = text.count("\n", 0, at) + 1
            raise Malformed(f"its grammar cannot be read from line {line} on")
    return Grammar(actions, rules)


def _skip(text: str, at: int) -> int:
    found = _SKIP.match(text, at)
    return found.end() if found else at


def _fields(text: str, at: int, name: str) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    at = _skip(text, at)
    while field := _FIELD.match(text, at):
        fields[field[1] or field[3]] = field[2] if field[1] else field[4]
        at = _skip(text, field.end())
    if not text.startswith("}", at) or not {"template", "feedback"} <= fields.keys():
        raise Malformed(f"its grammar is cut off or unreadable in the action {name}")
    return fields, _skip(text, at + 1)


def _rules(block: str) -> dict[str, list[Rule]]:
    try:
        symbols = json.loads(block)
        return {
            symbol: [_rule(production) for production in productions]
            for symbol, productions in symbols.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"a block of its grammar is not JSON of rules ({error})") from error


def _rule(production: dict[str, Any]) -> Rule:
    right = production["rhs"]
    if not isinstance(right, str):
        raise TypeError(f"{right!r} is no text")
    return Rule(parse_query(production.get("condition", "")), right)


_QUERY_ATOM = re.compile(r"\s*(!?)([\w/]+)\s*\(([^()]*)\)\s*(?:(&)|$)")
_VARIABLE = re.compile(r"\s*([\w']+)\s*(?::\s*([\w/-]+)\s*)?")


def parse_query(text: str) -> Query | None:
    """A conjunction `p(a: t) & q(a: t, b: u)`; None if there is nothing to ask.

    Raises:
        Malformed: it is no such conjunction.
    """
    if not text:
        return None
    atoms: list[Atom] = []
    at, more = 0, True
    while more:
        found = _QUERY_ATOM.match(text, at)
        if found is None:
            raise Malformed(f"its grammar asks {text!r}, which is no conjunction of predicates")
        variables = [_VARIABLE.fullmatch(part) for part in found[3].split(",")]
        atoms.append(
            Atom(
                ("not_" if found[1] else "") + found[2],
                tuple((v[1], v[2] or v[1]) for v in variables if v),
            )
        )
        if len(atoms[-1].variables) != len(variables):
            raise Malformed(f"its grammar asks {text!r}, whose variables cannot be read")
        at, more = found.end(), found[4] is not None
    return tuple(atoms)


_COMMENT = r"\(\*[\s\S]*?\*\)"
_EDGE = rf"(?:\t+|{_COMMENT})*+"
_WITHIN_LINE = re.compile(_EDGE)
_AT_LINE_START = re.compile(rf"(?:\s+|{_COMMENT}|//[^\n]*\n?)?")
_TAG = rf"#{_EDGE}([\w()/!<>\-\s,.]++){_EDGE}#"
_REFERENCE = re.compile(_TAG)
# Atomic, as TextWorld's parser is: what begins as a reference is not read as an expression later.
_CONDITIONAL = re.compile(
    rf"\{{{_EDGE}(?>{_TAG}|([^|\[\]{{}}\n<>]++)){_EDGE}"
    rf"(?:\s*\|\s*{_EDGE}([^;|{{}}\n\[\]#]++))?{_EDGE}\}}"
)
_OPEN_LIST = re.compile(rf"\[{_EDGE}")
_CLOSE_LIST = re.compile(rf"{_EDGE}\]")
_QUOTED = re.compile(r'"([^;|"<>\[\]#{}]*)"')
_LITERAL = re.compile(r'[^;|"<>\[\]#{}]*')


def parse_right(text: str) -> list[Symbol]:
    """The symbols of a right-hand side.

    Raises:
        Malformed: as `parse_query`.
    """
    symbols: list[Symbol] = []
    at = 0
    while True:
        at = _skip_edge(text, at)
        symbol, end = _symbol(text, at)
        if end == at:
            return symbols
        symbols.append(symbol)
        at = end


def _skip_edge(text: str, at: int) -> int:
    """Past what TextWorld drops before a symbol: comments, and tabs or white space."""
    while True:
        edge = _AT_LINE_START if at == 0 or text[at - 1] == "\n" else _WITHIN_LINE
        skipped = edge.match(text, at)
        if skipped is None or skipped.end() == at:
            return at
        at = skipped.end()


def _symbol(text: str, at: int) -> tuple[Symbol, int]:
    if opened := _OPEN_LIST.match(text, at):
        found = _CONDITIONAL.match(text, opened.end())
        if found and (closed := _CLOSE_LIST.match(text, found.end())):
            return _each(found, prose=True), closed.end()
    if found := _CONDITIONAL.match(text, at):
        return _each(found, prose=False), found.end()
    if found := _REFERENCE.match(text, at):
        return Reference(found[1]), found.end()
    if found := _QUOTED.match(text, at):
        return Literal(found[1]), found.end()
    found = _LITERAL.match(text, at)
    return (Literal(found[0]), found.end()) if found else (Literal(""), at)


def _each(found: re.Match[str], *, prose: bool) -> Each:
    item = Reference(found[1]) if found[1] else Expression(found[2].strip())
    return Each(item, parse_query((found[3] or "").strip()), prose)
