"""API keys: those a service accepts (`AGENTPRM_API_KEYS`) and the one a client sends
(`AGENTPRM_API_KEY`). Both come from the environment alone: a flag would show in process lists.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

from pydantic import SecretStr

ACCEPTED = "AGENTPRM_API_KEYS"
"""Keys of a service, such as `read:KEY,read:KEY,admin:KEY`."""
SENT = "AGENTPRM_API_KEY"
"""The key a client sends."""

_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}")
_RULE = "a key has 16 to 256 characters of A-Z a-z 0-9 . _ ~ + / = -"


class Scope(StrEnum):
    """What a key may do."""

    READ = "read"
    """Everything but what needs `admin`."""
    ADMIN = "admin"
    """Load checkpoints, ask for the expert and for hidden state; and all that `read` may."""


class Keys:
    """The keys that a service accepts. It keeps their digests only."""

    def __init__(self, keys: Sequence[tuple[Scope, str]]) -> None:
        self._digests = [(scope, _digest(key)) for scope, key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Keys:
        """Those of `AGENTPRM_API_KEYS`; none where it is unset.

        Raises:
            ValueError: it is malformed; the message does not repeat the key.
        """
        return cls(_parse(environment.get(ACCEPTED, "")))

    def scope_of(self, key: str) -> Scope | None:
        """What `key` may do, None for an unknown one, in a time that does not depend on the key."""
        given = _digest(key)
        found = None
        for scope, digest in self._digests:
            if hmac.compare_digest(given, digest):
                found = scope
        return found


def sent_key(environment: Mapping[str, str] = os.environ) -> SecretStr | None:
    """The key that clients send, if one is set.

    Raises:
        ValueError: it cannot be a key; the message does not repeat it.
    """
    key = environment.get(SENT)
    if not key:
        return None
    if not _KEY.fullmatch(key):
        raise ValueError(f"{SENT}: {_RULE}")
    return SecretStr(key)


def own_key(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to add to the environment of services that call one another: the most able of their keys
    as the one they send, unless one is set.
    """
    if environment.get(SENT):
        return {}
    keys = sorted(_parse(environment.get(ACCEPTED, "")), key=lambda entry: entry[0])
    return {SENT: keys[0][1]} if keys else {}  # `admin` comes before `read`


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(text: str) -> list[tuple[Scope, str]]:
    keys: dict[str, Scope] = {}
    for number, entry in enumerate(text.replace(",", " ").split(), 1):
        scope, colon, key = entry.partition(":")
        if not colon or scope not in list(Scope):
            raise ValueError(f"{ACCEPTED}: entry {number} is neither read:KEY nor admin:KEY")
        if not _KEY.fullmatch(key):
            raise ValueError(f"{ACCEPTED}: entry {number}: {_RULE}")
        if key in keys:
            raise ValueError(f"{ACCEPTED}: entry {number}: this key was given before")
        keys[key] = Scope(scope)
    return [(scope, key) for key, scope in keys.items()]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
