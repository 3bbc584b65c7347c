"""The environment service as a process: forks and prefixes over HTTP, and OpenEnv's wire."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from agentprm.protocol import CreateSessions, StepSession, StepSessions
from tests.env_server import KITCHEN, WINNING, EnvServer, write_kitchen

OPENENV = "openenv==0.10.0"
OPENENV_HOME = Path.home() / ".cache" / "agentprm" / OPENENV
PLAYER = Path(__file__).with_name("openenv_player.py")
BILLION = 10**9


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvServer]:
    data = tmp_path_factory.mktemp("games")
    write_kitchen(data)
    started = EnvServer("--data", str(data), "--capacity", "8", "--privileged", "true")
    yield started
    started.stop()


@pytest.fixture
def socket(server: EnvServer) -> Iterator[ClientConnection]:
    with connect(server.url.replace("http", "ws") + "/ws", proxy=None) as connection:
        yield connection


def ask(socket: ClientConnection, frame: object) -> Any:
    socket.send(frame if isinstance(frame, (str, bytes)) else json.dumps(frame))
    return json.loads(socket.recv(timeout=30))


def test_forks_and_prefixes_over_http(server: EnvServer) -> None:
    client = server.client
    (session,) = client.create(CreateSessions(games=[KITCHEN], prefixes=[WINNING[:4]], key="forks"))
    assert session.turn == 4
    forks = client.fork(session.id, 3)
    steps = [StepSession(id=fork.id, turn=4, command=WINNING[4]) for fork in forks[:2]]
    steps.append(StepSession(id=forks[2].id, turn=4, command="look"))
    ends = [result.session for result in client.step(StepSessions(steps=steps))]
    assert [end and end.won for end in ends] == [True, True, False]
    hidden = httpx.get(f"{server.url}/v1/sessions/{session.id}/hidden").raise_for_status().json()
    assert hidden["holding"] == "pot 1"
    over = httpx.post(f"{server.url}/v1/sessions/fork", json={"id": forks[0].id})
    assert over.status_code == 409
    client.close_sessions([session.id, *(fork.id for fork in forks)])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/sessions/fork", {"id": "unknown"}, 404),
        ("/v1/sessions/fork", {"id": "unknown", "count": 9}, 422),
        ("/v1/sessions/fork", {"id": "unknown", "count": BILLION}, 422),
        ("/v1/sessions", {"split": "train", "count": BILLION}, 422),
        ("/v1/sessions", {"games": [KITCHEN], "prefixes": [["look", "fly"]]}, 422),
        ("/v1/sessions", {"games": [KITCHEN], "prefixes": [WINNING]}, 422),
        ("/v1/sessions", {"games": [KITCHEN], "prefixes": [["look"] * 31]}, 422),
        (
            "/v1/sessions",
            {"games": [KITCHEN], "prefixes": [["look"], []]},
            422,
        ),
        ("/v1/sessions", {"split": "train", "prefixes": [[]]}, 422),
        ("/reset", {"game": "../../etc/passwd"}, 404),
        ("/reset", {"seed": -1}, 422),
        ("/step", {}, 422),
        ("/step", {"action": {"cmd": "look"}}, 422),
    ],
)
def test_bad_requests_are_problems(
    server: EnvServer, path: str, body: dict[str, Any], status: int
) -> None:
    answer = httpx.post(server.url + path, json=body, timeout=30)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text
    assert server.client.health().details["sessions"] == 0


def test_a_full_server_says_when_to_come_back(server: EnvServer, socket: ClientConnection) -> None:
    sessions = server.client.create(CreateSessions(games=[KITCHEN] * 8))
    answer = httpx.post(f"{server.url}/v1/sessions/fork", json={"id": sessions[0].id})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert ask(socket, {"type": "reset"})["data"]["code"] == "CAPACITY_REACHED"
    server.client.close_sessions([session.id for session in sessions])
    assert ask(socket, {"type": "reset"})["type"] == "observation"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", "INVALID_JSON"),
        ("{", "INVALID_JSON"),
        (b"\xff\x00", "INVALID_JSON"),
        ("[" * 100_000, "INVALID_JSON"),
        ("[]", "VALIDATION_ERROR"),
        ({"type": "fly"}, "UNKNOWN_TYPE"),
        ('{"type": "\\ud800"}', "INVALID_JSON"),
        (
            {"type": "step", "data": {"command": "look", "metadata": {"n": 2**70}}},
            "EXECUTION_ERROR",
        ),
        ({"type": "step"}, "VALIDATION_ERROR"),
        ({"type": "step", "data": {"command": 7}}, "VALIDATION_ERROR"),
        ({"type": "step", "data": {"command": "x" * 501}}, "VALIDATION_ERROR"),
        ({"type": "step", "data": {"command": "look"}}, "EXECUTION_ERROR"),
        ({"type": "reset", "data": {"game": "nowhere"}}, "EXECUTION_ERROR"),
        ({"type": "reset", "data": {"max_steps": BILLION}}, "VALIDATION_ERROR"),
    ],
)
def test_malformed_frames_are_answered_and_the_socket_lives(
    socket: ClientConnection, frame: object, code: str
) -> None:
    answer = ask(socket, frame)
    assert (answer["type"], answer["data"]["code"]) == ("error", code)
    assert "Traceback" not in answer["data"]["message"]
    assert ask(socket, {"type": "state"})["data"]["step_count"] == 0


def test_an_unknown_game_is_told_as_such(socket: ClientConnection) -> None:
    answer = ask(socket, {"type": "reset", "data": {"game": "train/nope"}})
    said = "there is no game 'train/nope'; GET /v1/games lists them"
    assert answer["data"]["message"] == said


def test_a_tool_is_called_over_the_socket(socket: ClientConnection) -> None:
    def call(**more: object) -> Any:
        rpc = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", **more}
        return ask(socket, {"type": "mcp", "data": rpc})["data"]

    assert call(params={"name": "play", "arguments": {"command": "look"}})["result"]["isError"]
    ask(socket, {"type": "reset", "data": {"game": KITCHEN}})
    played = call(params={"name": "play", "arguments": {"command": WINNING[0]}})["result"]
    assert played["content"][0]["text"].startswith("You arrive at stoveburner 1.")
    assert call(id=2**70)["error"]["code"] == -32600
    assert call(params={"name": "reset"})["error"]["code"] == -32602
    assert ask(socket, {"type": "state"})["data"]["step_count"] == 1


def test_an_oversized_frame_ends_its_own_socket_only(
    server: EnvServer, socket: ClientConnection
) -> None:
    with pytest.raises(ConnectionClosed):
        ask(socket, "x" * (17 * 2**20))
    with connect(server.url.replace("http", "ws") + "/ws", proxy=None) as other:
        assert ask(other, {"type": "state"})["type"] == "state"


def sessions_become(server: EnvServer, count: int) -> bool:
    """Whether there are so many, soon after a socket was closed."""
    deadline = time.monotonic() + 10
    while server.client.health().details["sessions"] != count and time.monotonic() < deadline:
        time.sleep(0.02)
    return server.client.health().details["sessions"] == count


def test_a_socket_gives_its_session_back(server: EnvServer, socket: ClientConnection) -> None:
    before = httpx.post(f"{server.url}/reset", json={"game": KITCHEN}, timeout=30).json()
    assert ask(socket, {"type": "reset", "data": {"seed": 1}})["data"] == before
    assert ask(socket, {"type": "reset", "data": {"game": KITCHEN}})["data"] == before
    assert sessions_become(server, 2)
    socket.send('{"type": "close"}')
    with pytest.raises(ConnectionClosed):
        socket.recv(timeout=30)
    assert sessions_become(server, 1)


def test_a_socket_that_says_nothing_is_closed(tmp_path: Path) -> None:
    write_kitchen(tmp_path)
    server = EnvServer("--data", str(tmp_path), "--idle-seconds", "1")
    try:
        with connect(server.url.replace("http", "ws") + "/ws", proxy=None) as idle:
            assert ask(idle, {"type": "reset", "data": {}})["type"] == "observation"
            with pytest.raises(ConnectionClosed) as closed:
                idle.recv(timeout=30)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
        assert sessions_become(server, 0)
    finally:
        server.stop()


def test_http_and_mcp_play_one_episode(server: EnvServer) -> None:
    def post(path: str, body: object) -> Any:
        return httpx.post(server.url + path, json=body, timeout=30).raise_for_status().json()

    post("/reset", {"game": KITCHEN, "episode_id": "mine"})
    for command in WINNING[:4]:
        played = post("/step", {"action": {"command": command}})
    assert (played["done"], played["reward"]) == (False, 0.0)
    assert httpx.get(f"{server.url}/state").json()["step_count"] == 4
    call = {"name": "play", "arguments": {"command": WINNING[4]}}
    rpc = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": call}
    answer = post("/mcp", rpc)
    assert (answer["id"], answer["result"]["isError"]) == (7, False)
    assert answer["result"]["structuredContent"]["reward"] == 1.0
    assert post("/mcp", rpc)["result"]["isError"]
    assert post("/mcp", {"jsonrpc": "2.0", "method": "fly"})["error"]["code"] == -32601
    assert post("/mcp", [])["error"]["code"] == -32600
    assert post("/mcp", rpc | {"id": 2**70})["error"]["code"] == -32600


@pytest.fixture(scope="module")
def openenv() -> Path:
    """The commands of OpenEnv, in an environment of their own: its requirements are not ours."""
    ready = OPENENV_HOME / "ready"
    if not ready.exists():
        python = OPENENV_HOME / "bin" / "python"
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(OPENENV_HOME)],
            [str(python), "-m", "pip", "install", "--quiet", OPENENV],
        ):
            made = subprocess.run(command, capture_output=True, text=True, timeout=500)
            if made.returncode != 0:
                pytest.skip(f"cannot install {OPENENV}: {made.stderr.strip()[-200:]}")
        ready.touch()
    return OPENENV_HOME / "bin"


def test_openenvs_own_client_plays_to_the_end(server: EnvServer, openenv: Path) -> None:
    played = subprocess.run(
        [openenv / "python", PLAYER, server.url, KITCHEN, *WINNING],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert played.returncode == 0, played.stderr
    *frames, state = [json.loads(line) for line in played.stdout.splitlines()]
    assert [frame["done"] for frame in frames] == [False] * 5 + [True]
    assert [frame["reward"] for frame in frames] == [0.0] * 5 + [1.0]
    for frame, command in zip(frames, WINNING, strict=False):
        assert command in frame["observation"]["admissible_commands"]
    assert frames[-1]["observation"]["text"] == "You move the pot 1 to the cabinet 1."
    assert (state["episode_id"], state["step_count"], state["game"]) == ("mine", 5, KITCHEN)


def test_openenv_finds_nothing_amiss(server: EnvServer, openenv: Path) -> None:
    found = subprocess.run(
        [openenv / "openenv", "validate", "--url", server.url, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    report = json.loads(found.stdout)
    assert (found.returncode, report["summary"]["failed_criteria"]) == (0, [])
    assert report["mode"] == "simulation"
