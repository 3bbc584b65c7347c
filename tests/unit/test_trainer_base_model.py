"""The model that a run begins with: how it is made, and what is refused before anything is played.

The chat templates are those of published models, as TRL ships them.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trl
from huggingface_hub.utils._paths import filter_repo_objects
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Lfm2Config,
    LlamaForCausalLM,
)

from agentprm.config import Algorithm, load_config
from agentprm.prompts import load_prompt
from services.trainer.base_model import (
    BaseModelError,
    base_model,
    require_layers,
    require_trainable,
)
from services.trainer.baselines import MoreSFT
from services.trainer.loop import Loop
from services.trainer.metrics import MetricsWriter
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Services
from services.trainer.rollouts.records import Records
from tests.models import tiny_causal_lm
from tests.synced import require_synced, synced
from tests.unit.trainer_episodes import create_small

CHAT = load_prompt("chat")


def template(name: str) -> str:
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def with_template(parent: Path, name: str) -> Path:
    """A small model whose chat template is that of a published one."""
    directory = create_small(parent)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.bos_token = tokenizer.eos_token  # which some of the templates begin with
    tokenizer.chat_template = template(name)
    tokenizer.save_pretrained(directory)
    return directory


# --- chat templates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["llama3", "llama3_1", "llama3_2", "qwen2_5", "qwen3_instruct_2507", "gemma3", "lfm2"]
)
def test_templates_that_only_add_are_taken(tmp_path: Path, name: str) -> None:
    require_trainable(with_template(tmp_path, name), CHAT, Algorithm.AGENT_PRM)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("qwen3", "rewrites earlier messages"),
        ("phi3", "rewrites earlier messages"),
        ("phi3_5", "rewrites earlier messages"),
        ("deepseek_r1_distill", "rewrites earlier messages"),
        ("gptoss", "rewrites earlier messages"),
        ("gemma", "System role not supported"),
        ("qwen3_5_nothink", "No user query found"),
    ],
)
def test_others_are_refused_with_what_to_do(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(BaseModelError, match=rf"{why}.*another chat_template\.jinja"):
        require_trainable(with_template(tmp_path, name), CHAT, Algorithm.AGENT_PRM)


@pytest.mark.parametrize("kind", [Loop, MoreSFT])
def test_a_run_refuses_its_model_before_anything_is_played(
    tmp_path: Path, kind: type[Loop]
) -> None:
    model = with_template(tmp_path, "qwen3")
    config = load_config("smoke", overrides={"model": str(model)})
    nobody = cast("Services", SimpleNamespace(queue=None))
    records = Records(tmp_path / "records")
    with MetricsWriter(tmp_path) as metrics:
        loop = kind(tmp_path, config, nobody, records, CHAT, metrics, Progress())
        with pytest.raises(BaseModelError, match="rewrites earlier messages"):
            loop.train()


def test_inverse_prm_refuses_a_window_at_once(tmp_path: Path) -> None:
    mistral = tiny_causal_lm(tmp_path, 0, kind="mistral", sliding_window=16)
    require_trainable(mistral, CHAT, Algorithm.AGENT_PRM)
    with pytest.raises(BaseModelError, match="needs full attention"):
        require_trainable(mistral, CHAT, Algorithm.INVERSE_PRM)


# --- layers ---------------------------------------------------------------------------------------


def test_layers_that_an_engine_does_not_run_are_refused_at_once(tmp_path: Path) -> None:
    Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2).save_pretrained(
        tmp_path
    )
    with pytest.raises(BaseModelError, match=r"type lfm2, .*no sequence classifier"):
        require_layers(tmp_path, load_config("smoke"))
    without_prm = {"algorithm": "sft"}
    with pytest.raises(BaseModelError, match="layers of conv, and the embedded engine"):
        require_layers(tmp_path, load_config("smoke", overrides=without_prm))
    on_servers = {"policy_engine": "sglang", "sglang_urls": ["http://a:1"]}
    require_layers(tmp_path, load_config("smoke", overrides={**without_prm, **on_servers}))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma2", "gemma3"])
def test_layers_of_attention_are_taken(tmp_path: Path, kind: str) -> None:
    require_layers(tiny_causal_lm(tmp_path, 0, kind=kind), load_config("smoke"))


# --- fetching -------------------------------------------------------------------------------------


def test_weights_are_fetched_once_and_as_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = [
        *("config.json", "tokenizer.json", "chat_template.jinja", "original/params.json"),
        *("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        *("original/consolidated.00.pth", "pytorch_model-00001-of-00002.bin", "model-q4.gguf"),
    ]
    fetched: list[str] = []

    def fetch(_: str, ignore_patterns: list[str]) -> str:
        fetched.extend(filter_repo_objects(published, ignore_patterns=ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr("services.trainer.base_model.snapshot_download", fetch)
    config = load_config("smoke", overrides={"model": "nobody/has-such-a-directory"})
    assert base_model(tmp_path, config) == tmp_path
    assert fetched == [*published[:3], *published[4:6]]


# --- writing --------------------------------------------------------------------------------------


def test_a_base_model_that_was_half_written_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("smoke")

    def killed(self: LlamaForCausalLM, directory: Path, **_: Any) -> None:
        self.config.save_pretrained(directory)  # first, as transformers does
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LlamaForCausalLM, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            base_model(tmp_path, config)
    with synced() as paths:
        directory = base_model(tmp_path, config)
    require_synced(paths, ".base-draft", directory)
    AutoModelForCausalLM.from_pretrained(directory)
    written = {file: file.stat().st_mtime_ns for file in directory.iterdir()}
    assert base_model(tmp_path, config) == directory
    assert {file: file.stat().st_mtime_ns for file in directory.iterdir()} == written
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
