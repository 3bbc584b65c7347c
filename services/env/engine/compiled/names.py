"""What entities are called: ids such as `apple_bar__minus_00_dot_12...` become `apple 1`.

As alfworld's demangler numbers them: among the ids of a class, in ascending order, the highest
number comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """Names by id, for all ids that occur in the initial facts. A name without number ends in a
    space, as the reference prints it."""
    names: dict[str, str] = {}
    following: Counter[str] = Counter()
    for identifier in sorted(ids, reverse=True):
        kind, bar, _ = identifier.partition("_bar_")
        if not bar:
            names[identifier] = f"{_plain(identifier)} "
            continue
        if "basin" in identifier:
            kind += "basin"
        following[kind] += 1
        names[identifier] = f"{_plain(kind)} {following[kind]}"
    return names


def _plain(text: str) -> str:
    for word, sign in (("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ",")):
        text = text.replace(word, sign)
    return text
