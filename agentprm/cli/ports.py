"""Where a service listens and is reached, and whose a port is: free, then that service's own."""

from __future__ import annotations

import ipaddress
import secrets
import socket

import httpx

from agentprm.protocol import Health

_LISTENED = range(16384, 32768)
_TRIES = 100


def free_port() -> int:
    """A loopback port that nobody listens on just now, below those of outgoing connections.

    A service that is restarted needs its port again. Were it among the ports that systems give to
    outgoing connections (from 32768 on Linux, from 49152 elsewhere), any connection could have it
    by then; even one to the dead service, which would then be connected to itself.
    """
    for _ in range(_TRIES):
        port = _LISTENED[secrets.randbelow(len(_LISTENED))]
        try:
            require_free("127.0.0.1", port)
        except OSError:
            continue
        return port
    raise OSError(f"{_TRIES} ports of 127.0.0.1 were tried, and others listen on all of them")


def require_free(host: str, port: int) -> None:
    """Go on only where a process of this machine can listen on `host` at `port`.

    Raises:
        OSError: another listens there, or `host` is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.create_server((host, port), family=family).close()


def local_url(host: str, port: int) -> str:
    """How this machine reaches what listens on the address `host`, which may be 0.0.0.0 or ::."""
    address = ipaddress.ip_address(host)
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return str(httpx.URL(scheme="http", host=loopback.get(str(address), str(address)), port=port))


def answers(url: str, pid: int) -> bool:
    """Whether the process `pid` of this machine answers `/health` at `url`.

    Another service of ours says its own id, and is not taken for it. A program that is none of ours
    says no id: what answers there is believed to be it.
    """
    try:
        answer = httpx.get(f"{url}/health", timeout=5.0, trust_env=False)  # no proxy is between
        return answer.status_code == 200 and _pid(answer) in (None, pid)
    except httpx.TransportError:
        return False


def _pid(answer: httpx.Response) -> int | None:
    try:
        return Health.model_validate_json(answer.content).pid
    except ValueError:
        return None
