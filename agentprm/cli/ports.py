"""Where a service listens and is reached, and whose a port is: free, then that service's own."""

from __future__ import annotations

import ipaddress
import socket

import httpx

from agentprm.protocol import Health


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


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
