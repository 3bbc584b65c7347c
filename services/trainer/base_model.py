"""The model that a run trains: made or fetched, and tried before anything is played."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from jinja2 import TemplateError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from agentprm.config import Algorithm, Config, PolicyEngine
from agentprm.files import sync, sync_tree
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Action, State, Step
from agentprm.registry import CheckpointError
from services.trainer.fits.inverse import require_full_attention
from services.trainer.seeds import derive
from services.trainer.tiny import create_tiny
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.rows import action_row

_NOT_FETCHED = ["original/*", "*.pth", "*.pt", "*.bin", "*.gguf", "*.h5", "*.msgpack", "*.onnx"]
"""Weights in other formats than safetensors, which is all that services read: a published model may
hold each weight twice."""
_EMBEDDED = {"full_attention", "sliding_attention"}
"""The types of layers that the embedded engine runs: what it keeps of a conversation are keys and
values, and what a token sees depends on a window at most."""


class BaseModelError(Exception):
    """The model cannot be trained as the run asks. Says what is wrong, and what to do."""


def base_model(run: Path, config: Config, texts: Iterable[str] | None = None) -> Path:
    """The directory of the model. One from scratch knows the words of `texts`, or of ALFWorld.

    It is written under another name first: where the directory is, it is complete.

    Raises:
        BaseModelError: the model is no directory, and nothing that can be fetched.
    """
    if config.model != "tiny":
        local = Path(config.model)
        try:
            if local.is_dir():
                return local
            return Path(snapshot_download(config.model, ignore_patterns=_NOT_FETCHED))
        except (OSError, ValueError) as error:
            raise BaseModelError(
                f"there is no directory {config.model}, and of that name nothing can be fetched "
                f"from the Hugging Face hub: {error}"
            ) from error
    directory, draft = run / "base", run / ".base-draft"
    if not directory.exists():
        shutil.rmtree(draft, ignore_errors=True)  # of a trainer that was killed
        create_tiny(draft, derive(config.seed, "model"), config.scratch, texts)
        sync_tree(draft)
        draft.rename(directory)
        sync(run)
    return directory


def require_trainable(base: Path, prompt: PromptTemplate, algorithm: Algorithm) -> None:
    """Try on two turns what every fit does with a thousand.

    Raises:
        BaseModelError: there is no tokenizer with padding, or its chat template rewrites what it
            rendered before or refuses the prompt, or the algorithm has no use for such a model.
    """
    try:
        tokenizer = load_tokenizer(base)
        if algorithm is Algorithm.INVERSE_PRM:
            require_full_attention(AutoConfig.from_pretrained(base).get_text_config())
    except (CheckpointError, OSError, ValueError) as error:
        raise BaseModelError(f"{base} cannot be trained: {error}") from error
    action = Action(reason="look around", command="look")
    step = Step(observation="You are in a room.", action=action)
    state = State(
        task="look around",
        history=(step,),
        observation="Nothing happens.",
        admissible=("look", "inventory"),
    )
    try:
        action_row(tokenizer, prompt, state, action)
    except (TemplateError, ValueError) as error:
        raise BaseModelError(
            f"the chat template of {base} cannot be trained with: {error}. Give `model` a copy of "
            "the directory with another chat_template.jinja: one that only adds to what it "
            "rendered before, and takes the prompt's messages one by one from the first"
        ) from error


def require_layers(base: Path, config: Config) -> None:
    """Refuse a model of which there is no PRM, or whose layers the policy's engine does not run.

    Raises:
        BaseModelError: it is one.
    """
    model = AutoConfig.from_pretrained(base)
    if config.has_prm and type(model) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise BaseModelError(
            f"{base} is of the type {model.model_type}, for which transformers has no sequence "
            "classifier: no PRM can be made of it"
        )
    layers = set(getattr(model.get_text_config(), "layer_types", None) or ()) - _EMBEDDED
    if config.policy_engine is PolicyEngine.EMBEDDED and layers:
        raise BaseModelError(
            f"{base} has layers of {', '.join(sorted(layers))}, and the embedded engine runs those "
            'of attention alone: have the policy served by SGLang, by policy_engine = "sglang"'
        )
