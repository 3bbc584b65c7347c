"""The client of a SGLang server against canned answers: faults that a real server does not show."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from transformers import AutoConfig
from transformers.models.llama import LlamaConfig

from agentprm.models.replicas import _shares
from agentprm.models.sglang import Generate, SGLangClient, SGLangError
from agentprm.models.sglang_weights import require_started_with


def client(answer: Callable[[httpx.Request], httpx.Response]) -> SGLangClient:
    return SGLangClient("http://server", transport=httpx.MockTransport(answer), retry_seconds=0.5)


def answer_of(prompt: dict[str, Any]) -> dict[str, Any]:
    """Two tokens, the second without a finite value; the prompt's tokens from its start."""
    ids = prompt["input_ids"]
    start = prompt["logprob_start_len"]
    read = [] if start < 0 else [[None if k == start else -k, ids[k]] for k in range(start, 4)]
    return {
        "meta_info": {
            "output_token_logprobs": [[-0.5, 7, None], [None, 8, None]],
            "input_token_logprobs": [[*pair, None] for pair in read],
            "finish_reason": {"type": "length"},
            "prompt_tokens": 4,
            "weight_version": "policy/1@abc",
        }
    }


def served(request: httpx.Request) -> httpx.Response:
    body = orjson.loads(request.content)
    if isinstance(body["sampling_params"], dict):
        return httpx.Response(200, json=answer_of(body))
    prompts = [dict(zip(body, values, strict=True)) for values in zip(*body.values(), strict=True)]
    return httpx.Response(200, content=orjson.dumps([answer_of(prompt) for prompt in prompts]))


@pytest.mark.parametrize("count", [1, 3])  # alone, and as a batch
def test_log_probabilities_belong_to_their_tokens_and_null_is_nan(count: int) -> None:
    prompts = [Generate([1, 2, 3, 4], 2, score_from=2)] * count
    for found in client(served).generate(prompts):
        assert found.ids == [7, 8]
        assert found.log_probs[0] == -0.5
        assert math.isnan(found.log_probs[1])
        assert found.prompt_log_probs == [-2.0, -3.0]
        assert (found.finish, found.version) == ("length", "policy/1@abc")
    [read] = client(served).generate([Generate([1, 2, 3, 4], 0)])
    assert (read.ids, read.prompt_log_probs) == ([], [])


def test_a_503_and_a_refused_connection_are_tried_again_and_nothing_else() -> None:
    asked: list[int | None] = []

    def failing(*statuses: int | None) -> Callable[[httpx.Request], httpx.Response]:
        left = list(statuses)

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(left.pop(0) if left else 200)
            if asked[-1] is None:
                raise httpx.ConnectError("refused", request=request)
            if asked[-1] == 0:
                raise httpx.ReadTimeout("late", request=request)
            return httpx.Response(
                asked[-1] or 200, json={"tokens": [], "error": {"message": "why"}}
            )

        return answer

    client(failing(503, None)).tokenize("")
    assert asked == [503, None, 200]
    for status in (500, 400, 0):
        asked.clear()
        with pytest.raises(SGLangError) as caught:
            client(failing(status)).tokenize("")
        assert caught.value.status == (status or None)
        assert asked == [status]
        assert ("why" in str(caught.value)) == bool(status)


def test_a_router_names_its_servers_and_a_server_has_none() -> None:
    body = {"workers": [{"url": "http://a"}, {"url": "http://b"}]}
    assert client(lambda _: httpx.Response(200, json=body)).workers() == ["http://a", "http://b"]
    assert client(lambda _: httpx.Response(404)).workers() is None


def test_episodes_stay_with_their_replica_until_it_has_its_share() -> None:
    assert _shares(range(4), [0, 1, 2, 3], 2) == [[0, 2], [1, 3]]
    # Eight items for two replicas: five is the most that one gets.
    assert _shares(range(8), [0] * 8, 2) == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert _shares([5, 6], [9] * 7, 1) == [[5, 6]]


def test_a_checkpoint_may_name_a_token_for_padding_that_the_started_model_does_not(
    tmp_path: Path,
) -> None:
    """Llama's configuration names none, and fits write the one they pad with."""
    LlamaConfig(pad_token_id=None, eos_token_id=[7, 8]).save_pretrained(tmp_path)
    info = {"model_path": "", "tokenizer_path": str(tmp_path), "weight_version": "default"}
    config = AutoConfig.from_pretrained(tmp_path).to_dict()
    with client(lambda _: httpx.Response(200, json=info | {"is_generation": True})) as server:
        require_started_with(server, config | {"pad_token_id": 9, "use_cache": False})
        with pytest.raises(ValueError, match="was started with num_hidden_layers 32, the check"):
            require_started_with(server, config | {"num_hidden_layers": 2})
