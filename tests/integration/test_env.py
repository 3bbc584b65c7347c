"""The environment service as a process, over real TextWorld."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from agentprm.client import EnvClient, ServiceError
from agentprm.protocol import CreateSessions, HiddenState, Session, Split, StepSession, StepSessions
from tests.env_server import EnvServer

pytestmark = pytest.mark.games

GAME = "valid_seen/pick_and_place_simple-Book-None-Sofa-229/trial_T20190907_042856_259139"
LONG_COMMAND = f'{{"steps": [{{"id": "x", "turn": 0, "command": "{2**20 * "a"}"}}]}}'


@pytest.fixture(scope="module")
def server(alfworld_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvServer]:
    cache = tmp_path_factory.mktemp("env") / "games.json"
    started = EnvServer(
        *("--data", str(alfworld_data), "--index", str(cache), "--privileged", "true"),
        *("--engine", "textworld", "--pool", "1"),
    )
    yield started
    started.stop()


def play(client: EnvClient, session: Session, turns: int) -> Session:
    """Up to so many turns of the expert's."""
    (session,) = client.experts([session.id])
    for _ in range(turns):
        assert session.expert is not None
        command = StepSession(id=session.id, turn=session.turn, command=session.expert.command)
        (result,) = client.step(StepSessions(steps=[command], expert=True))
        assert result.session is not None
        session = result.session
        if session.done:
            break
    return session


def test_a_game_is_won_though_its_process_is_killed(server: EnvServer) -> None:
    client = server.client
    (session,) = client.create(CreateSessions(games=[GAME], key="kill"))
    assert session.observation.startswith("-= Welcome to TextWorld, ALFRED! =-\n\n")
    assert session.observation.endswith(f"Your task is to: {session.game.task}")
    session = play(client, session, 2)
    before = hidden(server, session.id)
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    assert hidden(server, session.id) == before
    assert server.workers() != [worker]
    session = play(client, session, 30)
    assert (session.done, session.won, session.truncated, session.reward) == (True, True, False, 1)
    client.close_sessions([session.id, "unknown"])


def hidden(server: EnvServer, session_id: str) -> HiddenState:
    answer = httpx.get(f"{server.url}/v1/sessions/{session_id}/hidden", timeout=60)
    return HiddenState.model_validate_json(answer.raise_for_status().content)


def test_retries_at_the_same_time_and_later_step_once(server: EnvServer) -> None:
    client = server.client
    (session,) = client.create(CreateSessions(games=[GAME], key="retries"))
    steps = StepSessions(steps=[StepSession(id=session.id, turn=0, command="go to sofa 1")])
    with ThreadPoolExecutor(4) as threads:
        answers = [f.result() for f in [threads.submit(client.step, steps) for _ in range(4)]]
    assert all(answer == answers[0] for answer in answers)
    next_turn = StepSession(id=session.id, turn=1, command="look")
    client.step(StepSessions(steps=[next_turn]))
    assert client.step(steps) == answers[0]
    (result,) = client.step(StepSessions(steps=[next_turn.model_copy(update={"turn": 7})]))
    assert result.problem is not None
    assert result.problem.status == 409
    client.close_sessions([session.id])


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/sessions", "{", 422),
        ("POST", "/v1/sessions", '{"split": "valid_seen", "cuont": 1}', 422),
        ("POST", "/v1/sessions", '{"split": "valid_seen", "count": 2}', 422),
        ("POST", "/v1/sessions", '{"games": ["../../../etc/passwd"]}', 404),
        ("POST", "/v1/steps", '{"steps": [{"id": "x", "turn": -1, "command": ""}]}', 422),
        ("POST", "/v1/steps", LONG_COMMAND, 422),
        ("POST", "/v1/sessions/expert", '{"ids": ["x"]}', 404),
        ("GET", "/v1/sessions/x", "", 404),
        ("GET", "/v1/sessions/x/hidden", "", 404),
        ("DELETE", "/v1/sessions/x", "", 404),
        ("GET", "/v1/games?split=nowhere", "", 422),
    ],
)
def test_bad_input_is_a_problem(
    server: EnvServer, method: str, path: str, body: str, status: int
) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.request(method, server.url + path, content=body, headers=headers, timeout=30)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


def test_full_servers_say_when_to_come_back(server: EnvServer) -> None:
    (session,) = server.client.create(CreateSessions(games=[GAME]))
    body = {"split": "valid_seen"}
    answer = httpx.post(f"{server.url}/v1/sessions", json=body, timeout=30)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    httpx.delete(f"{server.url}/v1/sessions/{session.id}", timeout=30).raise_for_status()
    assert server.client.health().details["sessions"] == 0


def test_games_and_health(server: EnvServer) -> None:
    found = server.client.games(Split.VALID_SEEN, limit=3)
    assert (len(found.games), found.total) == (3, 140)
    details = server.client.health().details
    assert details["engine"] == "textworld"
    assert str(details["data_version"]).startswith("json_2.1.1/")
    assert (details["capacity"], details["games_valid_seen"]) == (1, 140)


def test_unprivileged_servers_keep_their_secrets_and_end_their_processes(
    alfworld_data: Path, tmp_path: Path
) -> None:
    data, index = str(alfworld_data), str(tmp_path / "games.json")
    server = EnvServer("--data", data, "--index", index, "--engine", "textworld")
    (session,) = server.client.create(CreateSessions(games=[GAME]))
    steps = [StepSession(id=session.id, turn=0, command="look")]
    with pytest.raises(ServiceError, match="403"):
        server.client.step(StepSessions(steps=steps, expert=True))
    with pytest.raises(ServiceError, match="403"):
        server.client.experts([session.id])
    answer = httpx.get(f"{server.url}/v1/sessions/{session.id}/hidden", timeout=30)
    assert answer.status_code == 403
    workers = server.workers()
    assert len(workers) == 1
    server.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_without_games_it_says_what_to_run(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "services.env", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "alfworld-download" in ended.stderr
    assert "Traceback" not in ended.stderr
