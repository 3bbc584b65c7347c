"""Which actions a game has. Their effects are written out in `state`, so others are refused.

ALFWorld has published one PDDL domain in two generations, which differ by the action `help`. The
actions are compared by their text without comments and white space.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from services.env.engine.compiled.errors import Malformed
from services.env.engine.compiled.pddl import tokens, without_comments

_SECTIONS = {"domain", ":requirements", ":types", ":predicates", ":functions", ":action"}

_KNOWN: dict[str, str] = {
    "look": "6e7bb1b38b831ecb",
    "inventory": "59a5e9e207c4ca61",
    "examinereceptacle": "9b40d37f8d40f113",
    "examineobject": "a771a77ce1882d57",
    "gotolocation": "dd0dd2a56c32ce82",
    "openobject": "dd0fde414a559eb3",
    "closeobject": "67570af6ce69d510",
    "pickupobject": "31f0a7f87d757c04",
    "putobject": "01c6ab9bdb2d2fbe",
    "cleanobject": "a058970025154665",
    "heatobject": "d87d98147384b7ca",
    "coolobject": "a9efc8e0c80a2668",
    "toggleobject": "004b357daaea4c24",
    "sliceobject": "3c00049923343c71",
    "help": "aa2f8e54f31dbb8a",
}
"""Action name to the first characters of the SHA-256 of its text."""

_OPTIONAL = {"help"}


@lru_cache(maxsize=8)
def known_actions(domain: str) -> frozenset[str]:
    """Names of the domain's actions, in lower case.

    Raises:
        Malformed: one is missing or not as ALFWorld's, or the domain cannot be read.
    """
    actions = {name: fingerprint(text) for name, text in _actions(domain)}
    for name, found in actions.items():
        if name not in _KNOWN:
            raise Malformed(f"its PDDL domain has the action {name}, which ALFWorld has not")
        if found != _KNOWN[name]:
            raise Malformed(f"its PDDL domain defines {name} in another way than ALFWorld")
    missing = _KNOWN.keys() - _OPTIONAL - actions.keys()
    if missing:
        raise Malformed(f"its PDDL domain lacks the action {min(missing)}")
    return frozenset(actions)


def fingerprint(action: str) -> str:
    """A short hash of an action's tokens."""
    return hashlib.sha256(action.encode()).hexdigest()[:16]


def _actions(domain: str) -> list[tuple[str, str]]:
    """Each action's name and its tokens joined by single spaces."""
    words = tokens(without_comments(domain).lower())
    if words[:2] != ["(", "define"]:
        raise Malformed("its PDDL domain does not begin with (define")
    actions = []
    depth = start = 0
    for at, token in enumerate(words):
        if token == "(":
            depth += 1
            if depth == 2:
                start = at
        elif token == ")":
            depth -= 1
            if depth == 1:
                section = words[start : at + 1]
                if section[1] not in _SECTIONS:
                    raise Malformed(f"its PDDL domain has a section {section[1]}")
                if section[1] == ":action":
                    actions.append((section[2], " ".join(section)))
    if depth != 0:
        raise Malformed("its PDDL domain is cut off")
    return actions
