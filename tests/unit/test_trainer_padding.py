"""The token for padding: never the one at which a PRM is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from agentprm.registry import CheckpointError
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.prm_model import load_prm


def with_tokens(path: Path, *tokens: str, **named: str) -> Path:
    """A random Llama whose tokenizer knows `tokens`, with `</s>` at the end of an answer."""
    words = ["</s>", "a", "b", *tokens]
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({word: k for k, word in enumerate(words)})),
        eos_token="</s>",
        **named,
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
        pad_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("tokens", "named", "expected"),
    [
        (["<unk>", "<|reserved_special_token_0|>"], {"unk_token": "<unk>"}, "<unk>"),
        (["<unk>"], {"unk_token": "<unk>", "pad_token": "</s>"}, "<unk>"),
        (["<unused1>", "<unused0>"], {"unk_token": "</s>"}, "<unused1>"),
        (["<|finetune_right_pad_id|>"], {}, "<|finetune_right_pad_id|>"),
        (["<unk>", "<mine>"], {"unk_token": "<unk>", "pad_token": "<mine>"}, "<mine>"),
    ],
)
def test_padding_is_not_the_end_of_an_answer(
    tmp_path: Path, tokens: list[str], named: dict[str, str], expected: str
) -> None:
    tokenizer = load_tokenizer(with_tokens(tmp_path, *tokens, **named))
    assert tokenizer.pad_token == expected
    model = load_prm(tmp_path, tokenizer.pad_token_id, seed=0).eval()
    ids = torch.tensor([[1, 2, 1, tokenizer.eos_token_id]])
    with torch.no_grad():
        ours = model(ids, torch.ones_like(ids), torch.tensor([[3]]))
        plain = type(model).forward(model, ids).logits
    assert plain.item() == pytest.approx(ours.item(), abs=1e-6)


def test_a_tokenizer_without_a_spare_token_is_refused(tmp_path: Path) -> None:
    directory = with_tokens(tmp_path)
    with pytest.raises(CheckpointError, match="name a token that no text holds as `pad_token`"):
        load_tokenizer(directory)
