"""Right-hand sides are read as TextWorld's own parser reads them, edges included."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.env.engine.compiled.errors import Malformed
from services.env.engine.compiled.grammar import Each, Expression, Literal, Symbol, parse_right

textgen = pytest.importorskip("textworld.envs.pddl.textgen")

PLAIN = [
    "a",
    "(*",
    "*)",
    " ",
    "\n",
    "\t",
    "//x",
    '"',
    "#",
    "{",
    "}",
    "[",
    "]",
    "|",
    ";",
    "<",
    "it's (b),",
]
SYMBOLS = ["#look#", "{r.name}", "{o.name | p(o:object)}", "[{#x(o)# | p(o:object)}]"]

CONJUNCTIONS = {"", "p(o:object)", "inreceptacle(o:object, r:receptacle)"}
"""What may be asked here; whatever else comes about of the pieces is none."""


def ours(symbol: Symbol) -> tuple[str, ...]:
    match symbol:
        case Literal(text):
            return "text", text
        case Each(item, query, prose):
            name = item.source if isinstance(item, Expression) else f"#{item.symbol}#"
            return "prose" if prose else "each", name, "query" if query else ""
    return "symbol", symbol.symbol


def theirs(symbol: object) -> tuple[str, ...]:
    match symbol:
        case textgen.TerminalSymbol():
            return "text", symbol.symbol
        case textgen.ListSymbol():
            return "prose", *theirs(symbol.symbol)[1:]
        case textgen.ConditionalSymbol():
            item = symbol.expression
            name = item.symbol.strip() if isinstance(item, textgen.EvalSymbol) else f"#{item}#"
            return "each", name, "query" if symbol.given else ""
        case textgen.NonterminalSymbol():
            return "symbol", symbol.symbol
    raise AssertionError(symbol)


def queries(symbols: list[object]) -> set[str]:
    """What TextWorld would ask for the conditional symbols, as it is written."""
    within = [s.symbol if isinstance(s, textgen.ListSymbol) else s for s in symbols]
    return {(s.given or "").strip() for s in within if isinstance(s, textgen.ConditionalSymbol)}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PLAIN + SYMBOLS), max_size=8).map("".join))
@example("\n  help\n  look: look around\n")
@example("You see [{o.indefinite + ' ' + o.name | inreceptacle(o:object, r:receptacle)}]. #look#")
@example("[{o.name|a}]")
@example("{o.name|a}")
@example("{#look#a}")
def test_right_hand_sides_are_read_alike(right: str) -> None:
    """A query that is no conjunction is refused here; TextWorld notices when it asks it."""
    parsed = textgen._parse_and_convert(right, rule_name="symbols")
    if queries(parsed) - CONJUNCTIONS:
        with pytest.raises(Malformed, match="its grammar asks"):
            parse_right(right)
        return
    expected = [theirs(x) for x in parsed]
    found = [ours(x) for x in parse_right(right)]
    # An empty text makes no difference.
    empty = ("text", "")
    assert [x for x in found if x != empty] == [x for x in expected if x != empty]
