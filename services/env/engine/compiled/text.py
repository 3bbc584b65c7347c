"""Compiles a grammar into functions from a state to text.

What a grammar asks is decided once per grammar, not once per step: which rules a symbol has, which
variables are bound where, and that every predicate and attribute is one this engine keeps.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from services.env.engine.compiled.errors import Malformed
from services.env.engine.compiled.grammar import (
    Each,
    Expression,
    Grammar,
    Literal,
    Query,
    Reference,
    Symbol,
    Variable,
    parse_right,
)
from services.env.engine.compiled.relations import RELATIONS

if TYPE_CHECKING:
    from services.env.engine.compiled.state import CompiledState

Binding = Mapping[str, int]
Render = Callable[["CompiledState", Binding], str]
Answers = Callable[["CompiledState", Binding], list[Binding]]
Bound = frozenset[Variable]

_ARTICLES = {"indefinite": "a", "definite": "the"}


class Compiler:
    """Compiles right-hand sides of one grammar.

    `given` replaces symbols of the grammar; `static` allows only facts that never change.
    """

    def __init__(
        self, grammar: Grammar, given: Mapping[str, Render], *, static: bool = False
    ) -> None:
        self._given = given
        self._rules = grammar.rules
        self._static = static
        self._done: dict[tuple[str, Bound], Render] = {}
        self._open: set[str] = set()

    def right(self, text: str, bound: Bound) -> Render:
        """A right-hand side, where the variables `bound` have values.

        Raises:
            Malformed: it cannot be read, or asks for what this engine does not keep.
        """
        parts = [self._part(symbol, bound) for symbol in parse_right(text)]
        if len(parts) == 1:
            return parts[0]
        return lambda state, binding: "".join([part(state, binding) for part in parts])

    def symbol(self, name: str, bound: Bound) -> Render:
        """The first rule of the symbol whose condition has an answer.

        Raises:
            Malformed: there is no such symbol, it is derived from itself, or as `right`.
        """
        if name in self._given:
            return self._given[name]
        key = name, bound
        if key not in self._done:
            if name in self._open:
                raise Malformed(f"its grammar derives #{name}# from itself")
            self._open.add(name)
            self._done[key] = self._first_applicable(name, bound)
            self._open.remove(name)
        return self._done[key]

    def _first_applicable(self, name: str, bound: Bound) -> Render:
        rules = self._rules.get(name)
        if not rules:
            raise Malformed(f"its grammar lacks the symbol #{name}#")
        cases: list[tuple[Answers, Render]] = []
        for rule in rules:
            right = self.right(rule.right, bound)
            if rule.condition is None:
                otherwise = right
                break
            cases.append((self._query(rule.condition, bound)[0], right))
        else:
            raise Malformed(f"its grammar has no unconditional rule for #{name}#")
        if not cases:
            return otherwise

        def render(state: CompiledState, binding: Binding) -> str:
            for applies, right in cases:
                if applies(state, binding):
                    return right(state, binding)
            return otherwise(state, binding)

        return render

    def _part(self, symbol: Symbol, bound: Bound) -> Render:
        match symbol:
            case Literal(text):
                return _constant(text)
            case Reference(name):
                return self.symbol(name, bound)
            case Each(item, None, prose=False):
                return self._item(item, bound)
            case Each(item, query, prose):
                return self._each(item, query or (), prose, bound)

    def _item(self, item: Reference | Expression, bound: Bound) -> Render:
        if isinstance(item, Reference):
            return self.symbol(item.symbol, bound)
        return _expression(item.source, bound)

    def _each(
        self, item: Reference | Expression, query: Query, prose: bool, bound: Bound
    ) -> Render:
        answers, extended = self._query(query, bound)
        one = self._item(item, extended)
        if not prose:
            return lambda state, binding: "".join([one(state, x) for x in answers(state, binding)])
        empty, between, before_last = (
            self.symbol(f"list_{name}", bound) for name in ("empty", "separator", "last_separator")
        )

        def render(state: CompiledState, binding: Binding) -> str:
            items = [one(state, answer) for answer in answers(state, binding)]
            if not items:
                return empty(state, binding)
            if len(items) == 1:
                return items[0]
            head = between(state, binding).join(items[:-1])
            return head + before_last(state, binding) + items[-1]

        return render

    def _query(self, query: Query, bound: Bound) -> tuple[Answers, Bound]:
        """All extensions of a binding that satisfy the query, and what they bind."""
        types = dict(bound)
        atoms = []
        for atom in query:
            relation = RELATIONS.get(atom.predicate)
            if relation is None or (self._static and not relation.static):
                raise Malformed(f"its grammar asks for {atom.predicate}, which cannot be answered")
            if tuple(kind for _, kind in atom.variables) != relation.types:
                raise Malformed(f"its grammar gives {atom.predicate} arguments of other types")
            names = [name for name, _ in atom.variables]
            fresh = [(at, name) for at, name in enumerate(names) if name not in types]
            for name, kind in atom.variables:
                if types.setdefault(name, kind) != kind or names.count(name) > 1:
                    raise Malformed(f"its grammar uses the variable {name} in two ways")
            atoms.append((relation.rows, names, fresh))

        def answers(state: CompiledState, binding: Binding) -> list[Binding]:
            found = [binding]
            for rows, names, fresh in atoms:
                extended = []
                for known in found:
                    for row in rows(state, [known.get(name) for name in names]):
                        answer = _extend(known, fresh, row)
                        if answer is not None:
                            extended.append(answer)
                found = extended
            return found

        return answers, frozenset(types.items())


def _extend(known: Binding, fresh: list[tuple[int, str]], row: tuple[int, ...]) -> Binding | None:
    """Bind the fresh variables; None if two variables would have the same value."""
    if not fresh:
        return known
    answer = dict(known)
    for at, name in fresh:
        if row[at] in answer.values():
            return None
        answer[name] = row[at]
    return answer


def _expression(source: str, bound: Bound) -> Render:
    """Attributes of entities and text, joined by `+`; `x or y` is x, for no name is empty."""
    try:
        pieces = _pieces(ast.parse(source, mode="eval").body, bound)
    except SyntaxError as error:
        raise Malformed(f"its grammar has the expression {source!r}, which is no Python") from error
    match pieces:
        case [_Field() as only]:
            return _field(only)
        case [str() as prefix, _Field("name", variable)]:
            return lambda state, binding: prefix + state.game.names[binding[variable]]
    parts = [_constant(x) if isinstance(x, str) else _field(x) for x in pieces]
    return lambda state, binding: "".join([part(state, binding) for part in parts])


class _Field(NamedTuple):
    """`name` or `id` of a variable's entity."""

    attribute: str
    variable: str


def _pieces(node: ast.expr, bound: Bound) -> list[str | _Field]:
    """The text that an expression joins, neighbouring constants as one."""
    variables = {name for name, _ in bound}
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.Name(id=name) if name in variables:
            return [_Field("name", name)]
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in variables:
            if attribute in _ARTICLES:
                return [_ARTICLES[attribute]]
            if attribute in ("name", "id"):
                return [_Field(attribute, name)]
        case ast.BoolOp(op=ast.Or(), values=[first, *_]):
            return _pieces(first, bound)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            pieces = _pieces(left, bound)
            for piece in _pieces(right, bound):
                if isinstance(piece, str) and pieces and isinstance(last := pieces[-1], str):
                    pieces[-1] = last + piece
                else:
                    pieces.append(piece)
            return pieces
    raise Malformed(f"its grammar has the expression {ast.unparse(node)!r}, beyond names and text")


def _constant(text: str) -> Render:
    return lambda _state, _binding: text


def _field(field: _Field) -> Render:
    attribute, variable = field
    if attribute == "id":
        return lambda state, binding: state.game.ids[binding[variable]]
    return lambda state, binding: state.game.names[binding[variable]]
