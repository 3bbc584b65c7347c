"""Two SGLang servers that serve a checkpoint between them, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentprm.models.replicas import Replicas, ReplicasError
from agentprm.models.sglang import Generate, SGLangClient, SGLangError
from agentprm.service import ProblemError
from tests.fake_sglang import LONGEST, FakeSGLang, Named, replicas_of


@dataclass(frozen=True)
class Compared(Named):
    """Raises what is told of a server when it is compared with it."""

    errors: Mapping[str, Exception]

    def compare(self, server: SGLangClient) -> None:
        if server.url in self.errors:
            raise self.errors[server.url]


class Broken(Named):
    def try_on(self, server: SGLangClient) -> None:
        raise ValueError("not finite")


@pytest.fixture
def servers() -> list[FakeSGLang]:
    return [FakeSGLang(), FakeSGLang()]


@pytest.fixture
def replicas(servers: list[FakeSGLang]) -> Iterator[Replicas]:
    with replicas_of(servers) as replicas:
        yield replicas


@pytest.fixture
def weights(tmp_path: Path) -> Named:
    return Named(tmp_path / "policy-7")


def prompts(*ids: int) -> list[Generate]:
    return [Generate([k], max_tokens=1) for k in ids]


def test_each_prompt_of_a_batch_has_its_own_answer_from_its_home(
    servers: list[FakeSGLang], replicas: Replicas, weights: Named
) -> None:
    replicas.put(weights)
    found = replicas.generate(prompts(10, 11, 12, 13, 14), weights.tag, [1, 0, 0, 1, 3])
    assert [each.ids for each in found] == [[10], [11], [12], [13], [14]]
    assert [server.prompts for server in servers] == [[[11], [12]], [[10], [13], [14]]]


def test_what_other_weights_answered_is_asked_of_another_replica(
    servers: list[FakeSGLang], replicas: Replicas, weights: Named
) -> None:
    replicas.put(weights)
    servers[0].version = "restarted"
    found = replicas.generate(prompts(10, 11), weights.tag, [0, 1])
    assert [each.ids for each in found] == [[10], [11]]
    assert {each.version for each in found} == {weights.tag}
    assert [*replicas.tags().values()] == [None, weights.tag]
    replicas.mend(weights)
    assert [*replicas.tags().values()] == [weights.tag] * 2
    assert servers[0].version == weights.tag


def test_where_no_replica_has_the_weights_it_is_a_503(
    servers: list[FakeSGLang], replicas: Replicas, weights: Named
) -> None:
    replicas.put(weights)
    for server in servers:
        server.version = "restarted"
    with pytest.raises(ProblemError, match="no SGLang server answers") as caught:
        replicas.generate(prompts(10), weights.tag, [0])
    assert caught.value.problem.status == 503


def test_a_prompt_that_a_server_refuses_is_the_requests_fault(
    replicas: Replicas, weights: Named
) -> None:
    replicas.put(weights)
    with pytest.raises(ProblemError, match="too long") as caught:
        replicas.generate([Generate([1] * (LONGEST + 1), max_tokens=1)], weights.tag, [0])
    assert caught.value.problem.status == 422
    assert [*replicas.tags().values()] == [weights.tag] * 2


def test_a_server_that_does_not_take_the_weights_is_set_aside(
    servers: list[FakeSGLang], replicas: Replicas, weights: Named
) -> None:
    servers[0].takes = False
    with pytest.raises(ReplicasError, match="says it serves default, not policy-7"):
        replicas.put(weights)
    assert [*replicas.tags().values()] == [None, weights.tag]


def test_weights_that_do_not_pass_their_canary_serve_nowhere(
    replicas: Replicas, weights: Named
) -> None:
    with pytest.raises(ReplicasError, match="not finite") as caught:
        replicas.put(Broken(weights.path))
    assert caught.value.refused
    assert [*replicas.tags().values()] == [None, None]


def test_weights_that_are_unfit_for_one_server_are_refused_though_another_is_down(
    replicas: Replicas, weights: Named
) -> None:
    one, other = replicas.tags()
    down = {one: SGLangError(None, "no answer")}
    unfit = {other: ValueError("of another shape")}
    for errors, refused in ((down | unfit, True), (down, False)):
        with pytest.raises(ReplicasError, match="no answer") as caught:
            replicas.compare(Compared(weights.path, errors))
        assert caught.value.refused is refused
