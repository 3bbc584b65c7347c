"""Settings named one by one: `dpo.beta=0.1`, in place of what a preset says."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`{"dpo.beta": 0.1}` of `["dpo.beta=0.1"]`. A value is TOML, or else a word as it stands.

    Raises:
        ValueError: one is not of the form `name=value`, or a name is there twice.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not all(part.isidentifier() for part in name.strip().split(".")):
            raise ValueError(f"{assignment!r} is not of the form group.name=value")
        if name.strip() in overrides:
            raise ValueError(f"{name.strip()} is given twice")
        overrides[name.strip()] = _value(value.strip())
    return overrides


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the nested `values` in which each dotted name of `overrides` has its value.

    The word `none` takes out what may be left out: TOML has no null. A table that is empty adds
    nothing to one that is there.
    """
    result = dict(values)
    for name, value in overrides.items():
        head, _, rest = name.partition(".")
        group = result.get(head)
        inner = group if isinstance(group, Mapping) else {}
        if rest:
            result[head] = merged(inner, {rest: value})
        elif value == {}:
            result[head] = inner
        else:
            result[head] = None if value == "none" else value
    return result


def dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `values` by dotted names, as `merged` takes them."""
    names: dict[str, Any] = {}
    for name, value in values.items():
        inner = dotted(value) if isinstance(value, Mapping) else {}
        names |= {f"{name}.{rest}": deepest for rest, deepest in inner.items()} or {name: value}
    return names


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
