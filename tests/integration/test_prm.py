"""The PRM as a real process on real checkpoints."""

import json
import os
import signal

import httpx
import pytest

from agentprm.client import PRMClient, ServiceError
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Choice, Pair, ScoreRequest, ScoreResponse, State
from agentprm.registry import STABLE, Registry
from tests.scorers import episode, tiny_scorer
from tests.servers import prm_server

REQUEST = ScoreRequest(
    transcripts=[episode(3), episode(5, 1)],
    choices=[
        Choice(
            state=State(task="put a mug in cabinet", observation="you see a mug 1"),
            actions=[Action(reason="find mug", command=f"take mug {k}") for k in range(4)],
        )
    ],
    pairs=[
        Pair(
            state=State(task="put a mug in cabinet", observation="you see a mug 1"),
            action=Action(reason="find mug", command="take mug 2"),
        )
    ],
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """prm/0 and prm/1 differ; prm/2 is unmarked, prm/3 damaged, prm/4 has two labels."""
    registry = Registry(tmp_path_factory.mktemp("run") / "checkpoints")
    for k in range(5):
        with registry.write(f"prm/{k}") as draft:
            tiny_scorer(draft, seed=k, labels=2 if k == 4 else 1)
    (registry.path("prm/2") / STABLE).unlink()
    with (registry.path("prm/3") / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    return registry


def require_same(found: ScoreResponse, expected: ScoreResponse) -> None:
    """Equal but for rounding: what was kept from earlier requests may shape a pass otherwise."""
    assert found.prm_version == expected.prm_version
    assert found.pairs == pytest.approx(expected.pairs, abs=1e-5)
    for a, b in zip(
        found.choices + found.transcripts, expected.choices + expected.transcripts, strict=True
    ):
        assert a == pytest.approx(b, abs=1e-5)


def test_score_load_bad_input_and_restart(registry: Registry) -> None:
    with prm_server(registry) as (process, url), PRMClient(url, deadline=30) as prm:
        empty = httpx.post(f"{url}/v1/score", json=REQUEST.model_dump(mode="json"))
        assert empty.status_code == 503
        assert empty.headers["retry-after"]
        assert prm.health().status == "loading"

        assert prm.load("prm/0").previous is None
        first = prm.score(REQUEST)
        assert (first.prm_version, first.template_hash) == ("prm/0", load_prompt("chat").hash)
        assert [len(turns) for turns in first.transcripts] == [3, 5]
        assert first.pairs[0] == pytest.approx(first.choices[0][2], abs=1e-5)

        for version, status, reason in [
            ("prm/2", 409, "STABLE"),
            ("prm/3", 409, "model.safetensors differs"),
            ("prm/4", 409, "has 2 labels"),
            ("prm/9", 404, "no checkpoint"),
            ("other/1", 404, "not a checkpoint version"),
        ]:
            with pytest.raises(ServiceError, match=reason) as caught:
                prm.load(version)
            assert caught.value.status == status
        for path in ("../../etc/passwd", "/etc/passwd", "prm/../../x", "prm/0/../1"):
            answer = httpx.post(f"{url}/v1/checkpoints/load", json={"version": path})
            assert answer.status_code == 422
        require_same(prm.score(REQUEST), first)

        loaded = prm.load("prm/1")
        assert (loaded.version, loaded.previous) == ("prm/1", "prm/0")
        second = prm.score(REQUEST)
        assert second.prm_version == "prm/1"
        assert second.transcripts[0] != pytest.approx(first.transcripts[0], abs=1e-3)
        require_bad_input_refused(url)
        require_same(prm.score(REQUEST), second)
        require_cache_measured(url)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    with prm_server(registry) as (_, url), PRMClient(url, deadline=30) as prm:
        assert prm.health().version == "prm/1"
        require_same(prm.score(REQUEST), second)


def require_bad_input_refused(url: str) -> None:
    pair = REQUEST.model_dump(mode="json")["pairs"][0]
    long = {**pair, "action": {"command": "x" * 2**20}}
    wordy = {**pair, "action": {"reason": "mug " * 4000, "command": "look"}}
    surrogate = {**pair, "action": {"command": "\ud800"}}
    for body in (
        b'{"pairs": [',
        b"[" * 100_000,
        b'{"pairs": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"pairs": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"{}",
        b'{"pairs": [], "unknown": 1}',
        b'{"pairs": [], "\\ud800": 1}',
        *(json.dumps({"pairs": [p]}).encode() for p in (long, wordy, surrogate)),
    ):
        answer = httpx.post(
            f"{url}/v1/score", content=body, headers={"content-type": "application/json"}
        )
        assert 400 <= answer.status_code < 500, (body[:60], answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.content) < 2000
    assert "tokens, the model reads 1024" in _detail(url, wordy)


def require_cache_measured(url: str) -> None:
    metrics = httpx.get(f"{url}/metrics").text
    assert "agentprm_prm_batch_rows_bucket" in metrics
    assert "agentprm_prm_waiting_rows 0.0" in metrics
    for name in ('tokens_total{source="cached"}', 'prefixes_total{result="hit"}'):
        (line,) = [x for x in metrics.splitlines() if x.startswith(f"agentprm_prm_{name} ")]
        assert float(line.split()[-1]) > 0


def _detail(url: str, pair: object) -> str:
    answer = httpx.post(f"{url}/v1/score", json={"pairs": [pair]})
    return str(answer.json()["detail"])
