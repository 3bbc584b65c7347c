"""Checkpoints as the trainer writes them, tried by the services; then the same, tampered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from typer.testing import CliRunner

from agentprm.canary import FILE, Canary, read_canary
from agentprm.cli import app
from agentprm.config import DPOSettings, PRMSettings, SFTSettings
from agentprm.prompts import load_prompt
from agentprm.registry import CheckpointError, Registry
from services.policy.canary import check as check_policy
from services.policy.engine.embedded import EmbeddedEngine
from services.prm.canary import check as check_prm
from services.prm.scorer import Scorer
from services.trainer.fits.dpo import fit_dpo
from services.trainer.fits.prm import fit_prm
from services.trainer.fits.sft import fit_sft
from services.trainer.targets.monte_carlo import monte_carlo_targets
from services.trainer.training.saving import Save
from tests.unit.trainer_episodes import create_small, episode, preferences

EPISODES = [
    episode(["go to sidetable 1", "take mug 1 from sidetable 1"], [0.0, 1.0], "a", 0),
    episode(["go to fridge 1", "look"], [0.0, 0.0], "b", 1),
]
Tamper = Callable[[Path], None]
Try = Callable[..., None]


def try_policy(path: Path, prompt: str = "chat", dtype: str = "float32") -> None:
    engine = EmbeddedEngine.load(path, device="cpu", dtype=dtype, cache_bytes=2**22)
    check_policy(engine, path, load_prompt(prompt))


def try_prm(path: Path, prompt: str = "chat", dtype: str = "float32") -> None:
    check_prm(Scorer(path, load_prompt(prompt), device="cpu", dtype=dtype), path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`policy` and `prm` as the fits write them for the prompt `chat`, `state-*` for `state`."""
    root = tmp_path_factory.mktemp("trained")
    small = create_small(root)
    targets = monte_carlo_targets(EPISODES, 0.8)
    sft = SFTSettings(epochs=15, learning_rate=1e-2, precision="fp32")
    prm = PRMSettings(
        epochs=15, learning_rate=1e-2, batch_tokens=600, validation_fraction=0, precision="fp32"
    )
    for prefix, prompt in (("", load_prompt("chat")), ("state-", load_prompt("state"))):
        fit_sft(small, EPISODES, root / f"{prefix}policy", sft, prompt, seed=0)
        fit_prm(
            small,
            EPISODES,
            targets,
            root / f"{prefix}prm",
            prm,
            prompt,
            seed=0,
            split_seed=0,
            gamma=0.8,
        )
    return root


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Callable[[str], Path]:
    def made(name: str) -> Path:
        return Path(shutil.copytree(trained / name, tmp_path / name))

    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("prefix", ["", "state-"])
def test_what_the_trainer_wrote_is_accepted_in_any_precision(
    trained: Path, prefix: str, dtype: str
) -> None:
    prompt = "state" if prefix else "chat"
    try_policy(trained / f"{prefix}policy", prompt, dtype)
    try_prm(trained / f"{prefix}prm", prompt, dtype)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma3_text"])
def test_models_of_other_architectures_are_trained_and_served(tmp_path: Path, kind: str) -> None:
    small = create_small(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(small)
    first = "sliding_attention" if kind == "gemma3_text" else "full_attention"
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=1024,
        layer_types=[first, "full_attention"],
        sliding_window=16,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(small)
    prompt, targets = load_prompt("chat"), monte_carlo_targets(EPISODES, 0.8)
    sft = SFTSettings(epochs=3, learning_rate=1e-2, precision="fp32")
    prm = PRMSettings(epochs=3, batch_tokens=600, validation_fraction=0, precision="fp32")
    fit_sft(small, EPISODES, tmp_path / "policy", sft, prompt, seed=0)
    fit_prm(
        tmp_path / "policy",
        EPISODES,
        targets,
        tmp_path / "prm",
        prm,
        prompt,
        seed=0,
        split_seed=0,
        gamma=0.8,
    )
    dpo = DPOSettings(max_steps=1, batch_pairs=2, precision="fp32")
    policy, pairs = tmp_path / "policy", preferences()
    fit_dpo(policy, policy, pairs, tmp_path / "next", dpo, prompt, lambda *_: None, seed=0)
    for dtype in ("float32", "bfloat16"):
        try_policy(tmp_path / "policy", dtype=dtype)
        try_policy(tmp_path / "next", dtype=dtype)
        try_prm(tmp_path / "prm", dtype=dtype)


def test_the_canary_holds_what_plain_transformers_computes(trained: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    policy, prm = read_canary(trained / "policy", "policy"), read_canary(trained / "prm", "prm")
    assert policy is not None
    assert prm is not None
    assert policy.dtype == prm.dtype == "float32"
    causal = AutoModelForCausalLM.from_pretrained(trained / "policy")
    scorer = AutoModelForSequenceClassification.from_pretrained(trained / "prm")
    with torch.no_grad():
        for answer in policy.answers:
            log_probs = causal(torch.tensor([answer.ids])).logits[0].log_softmax(-1)
            for k, value in enumerate(answer.values, answer.start):
                assert log_probs[k - 1, answer.ids[k]].item() == pytest.approx(value, abs=1e-4)
        for answer in prm.answers:
            logit = scorer(torch.tensor([answer.ids])).logits.item()
            assert (logit,) == pytest.approx(answer.values, abs=1e-4)
        prompt = torch.tensor([policy.answers[0].ids[: policy.answers[0].start]])
        greedy = causal.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=[])
    assert greedy[0, prompt.shape[1] :].tolist() == [token.id for token in policy.greedy]


def test_online_weights_have_a_canary_of_their_own(trained: Path, tmp_path: Path) -> None:
    published: list[Path] = []

    def publish(save: Save, step: int) -> None:
        save(tmp_path / str(step), rounded=True)  # not on a CPU, which serves float32
        published.append(tmp_path / str(step))

    settings = DPOSettings(
        learning_rate=1e-2, max_steps=4, batch_pairs=2, publish_every=2, precision="fp32"
    )
    policy = trained / "policy"
    out = tmp_path / "out"
    fit_dpo(policy, policy, preferences(), out, settings, load_prompt("chat"), publish, seed=0)
    for path in (*published, out):
        assert AutoModelForCausalLM.from_pretrained(path, dtype="auto").dtype == torch.float32
        try_policy(path)
    shutil.copy(published[0] / FILE, out / FILE)
    with pytest.raises(CheckpointError, match="does not compute what was trained"):
        try_policy(out)


def test_weights_that_a_gpu_serves_are_published_in_what_it_serves_them_in(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.training.saving.serves_rounded", lambda _: True)

    def publish(save: Save, step: int) -> None:
        save(tmp_path / "whole")
        save(tmp_path / "rounded", rounded=True)

    settings = DPOSettings(max_steps=1, batch_pairs=2, publish_every=1, precision="bf16")
    policy, out = trained / "policy", tmp_path / "out"
    fit_dpo(policy, policy, preferences(), out, settings, load_prompt("chat"), publish, seed=0)
    whole, rounded, last = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto")
        for name in ("whole", "rounded", "out")
    )
    assert (whole.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    for name, weight in whole.state_dict().items():
        assert rounded.state_dict()[name].equal(weight.bfloat16())
        assert last.state_dict()[name].equal(weight)
    try_policy(tmp_path / "rounded")


# --- faults, all of them in files that a hash would find in order ---------------------------------


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = path / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(weights)
    save_file(weights, file, {"format": "pt"})


def permuted_embeddings(path: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        name = "model.embed_tokens.weight"
        weights[name] = weights[name].roll(1, dims=0)

    edit(path, change)


def exchanged_layers(path: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".layers.0." in name]:
            other = name.replace(".layers.0.", ".layers.1.")
            weights[name], weights[other] = weights[other], weights[name]

    edit(path, change)


def exchanged_keys_and_values(path: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        key, value = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "kv")
        weights[key], weights[value] = weights[value], weights[key]

    edit(path, change)


def negated_head(path: Path) -> None:
    edit(path, lambda weights: weights["score.weight"].neg_())


def other_tokenizer(path: Path) -> None:
    """Two words have changed places."""
    file = path / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words["mug"], words["apple"] = words["apple"], words["mug"]
    file.write_text(json.dumps(content))


def other_chat_template(path: Path) -> None:
    file = path / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|end|>", "<|end|><|end|>"))


def truncated_vocabulary(path: Path) -> None:
    """The last words lose their embeddings, and config.json agrees."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        name = "model.embed_tokens.weight"
        weights[name] = weights[name][:-50].clone()

    edit(path, change)
    config = orjson.loads((path / "config.json").read_bytes())
    config["vocab_size"] -= 50
    (path / "config.json").write_bytes(orjson.dumps(config))


def other_rotation(path: Path) -> None:
    config = orjson.loads((path / "config.json").read_bytes())
    config["rope_parameters"]["rope_theta"] *= 100
    (path / "config.json").write_bytes(orjson.dumps(config))


def fewer_layers(path: Path) -> None:
    config = orjson.loads((path / "config.json").read_bytes())
    config["num_hidden_layers"] = 1
    (path / "config.json").write_bytes(orjson.dumps(config))


def more_layers(path: Path) -> None:
    config = orjson.loads((path / "config.json").read_bytes())
    config["num_hidden_layers"] = 3
    (path / "config.json").write_bytes(orjson.dumps(config))


def not_a_number(path: Path) -> None:
    edit(path, lambda weights: weights["model.norm.weight"].fill_(float("nan")))


def damaged_canary(path: Path) -> None:
    (path / FILE).write_text('{"kind": "policy"')


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (permuted_embeddings, r"is \S+ here and was \S+ when the checkpoint was written"),
        (exchanged_layers, "does not compute what was trained"),
        (exchanged_keys_and_values, "does not compute what was trained"),
        (other_rotation, "does not compute what was trained"),
        (other_tokenizer, r"makes other tokens .* at \d+ \d+ instead of \d+"),
        (other_chat_template, "makes other tokens"),
        (truncated_vocabulary, "tokenizer knows"),
        (fewer_layers, "holds weights for which its config.json has no place: model.layers.1"),
        (more_layers, "lacks the weights model.layers.2"),
        (not_a_number, "not finite"),
        (damaged_canary, r"canary\.json is damaged"),
    ],
)
@pytest.mark.parametrize(("name", "attempt"), [("policy", try_policy), ("prm", try_prm)])
def test_a_fault_is_refused_and_named(
    copy: Callable[[str], Path], name: str, attempt: Try, tamper: Tamper, why: str
) -> None:
    path = copy(name)
    tamper(path)
    with pytest.raises((CheckpointError, ValueError), match=why):
        attempt(path)


@pytest.mark.parametrize(
    ("name", "attempt", "tamper"),
    [
        ("policy", try_policy, permuted_embeddings),
        ("policy", try_policy, exchanged_keys_and_values),
        ("prm", try_prm, negated_head),
    ],
)
def test_gross_faults_are_refused_in_reduced_precision_too(
    copy: Callable[[str], Path], name: str, attempt: Try, tamper: Tamper
) -> None:
    path = copy(name)
    tamper(path)
    with pytest.raises(CheckpointError, match="does not compute what was trained"):
        attempt(path, dtype="bfloat16")


@pytest.mark.parametrize(("name", "attempt"), [("policy", try_policy), ("prm", try_prm)])
def test_another_prompt_is_refused(trained: Path, name: str, attempt: Try) -> None:
    with pytest.raises(CheckpointError, match="was trained with another prompt"):
        attempt(trained / name, "state")
    with pytest.raises(CheckpointError, match="was trained with another prompt"):
        attempt(trained / f"state-{name}", "chat")


def test_a_checkpoint_of_the_other_kind_is_refused(trained: Path) -> None:
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        try_policy(trained / "prm")
    with pytest.raises(CheckpointError, match="has 2 labels"):
        try_prm(trained / "policy")
    with pytest.raises(CheckpointError, match="is a prm, and this service serves a policy"):
        read_canary(trained / "prm", "policy")


@pytest.mark.parametrize(("name", "attempt"), [("policy", try_policy), ("prm", try_prm)])
def test_without_a_canary_finite_numbers_are_enough(
    copy: Callable[[str], Path], name: str, attempt: Try
) -> None:
    path = copy(name)
    (path / FILE).unlink()
    exchanged_layers(path)
    attempt(path)


def test_a_draw_between_two_greedy_tokens_may_fall_either_way(
    copy: Callable[[str], Path],
) -> None:
    path = copy("policy")
    canary = read_canary(path, "policy")
    assert canary is not None

    def write(margin: float) -> Canary:
        first = canary.greedy[0].model_copy(update={"id": 7, "margin": margin})
        return canary.model_copy(update={"greedy": (first, *canary.greedy[1:])})

    write(margin=5e-4).write(path)
    try_policy(path)
    write(margin=0.5).write(path)
    with pytest.raises(CheckpointError, match=r"greedy token 0 is \d+ here and was 7"):
        try_policy(path)


@pytest.mark.parametrize(("margin", "taken"), [(0.3, True), (0.5, True), (1.5, False)])
@pytest.mark.parametrize("at", [0, 1])
def test_a_greedy_token_may_differ_by_some_steps_of_bfloat16(
    copy: Callable[[str], Path], margin: float, taken: bool, at: int
) -> None:
    """They are 1/8 or 1/4 where logits are as large as those of published models. What was drawn
    before it may be off by as much, though it be a single token."""
    path = copy("policy")
    canary = read_canary(path, "policy")
    assert canary is not None
    greedy = list(canary.greedy)
    greedy[at] = greedy[at].model_copy(update={"id": 7, "margin": margin})
    if at:
        greedy[0] = greedy[0].model_copy(update={"log_prob": greedy[0].log_prob - 0.25})
    canary.model_copy(update={"greedy": tuple(greedy), "dtype": "bfloat16"}).write(path)
    refused = pytest.raises(CheckpointError, match=rf"greedy token {at} is \d+ here and was 7")
    with nullcontext() if taken else refused:
        try_policy(path)


@pytest.mark.parametrize(("off", "taken"), [([0.25] + [0.0] * 7, True), ([0.25] * 8, False)])
def test_rounded_log_probs_are_compared_over_all_greedy_tokens(
    copy: Callable[[str], Path], off: list[float], taken: bool
) -> None:
    """Of bfloat16 one is off by a quarter now and then, and not all of them, the same way."""
    path = copy("policy")
    canary = read_canary(path, "policy")
    assert canary is not None
    greedy = [
        token.model_copy(update={"log_prob": token.log_prob + by})
        for token, by in zip(canary.greedy, off, strict=True)
    ]
    canary.model_copy(update={"dtype": "bfloat16", "greedy": tuple(greedy)}).write(path)
    with nullcontext() if taken else pytest.raises(CheckpointError, match="first 8 greedy tokens"):
        try_policy(path)


def test_weights_that_serve_do_not_hang_on_their_file(copy: Callable[[str], Path]) -> None:
    """Loaded as safetensors does it, they would change with it, or the process would be killed."""
    path = copy("policy")
    engine = EmbeddedEngine.load(path, device="cpu", dtype="float32", cache_bytes=0)
    scorer = Scorer(copy("prm"), load_prompt("chat"), device="cpu")
    for folder in (path, path.with_name("prm")):
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(4096)
    check_policy(engine, path, load_prompt("chat"))
    check_prm(scorer, path.with_name("prm"))


def test_exported_checkpoints_are_smaller_and_load_anywhere(
    trained: Path, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "checkpoints")
    registry.adopt(trained / "policy", "policy/0")
    registry.adopt(trained / "prm", "prm/0")
    out = tmp_path / "out"
    command = ["checkpoints", "export", str(out), "--registry", str(registry.root)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert str(out / "prm" / "0") in done.output

    try_policy(out / "policy" / "0")
    try_prm(out / "prm" / "0", dtype="auto")
    prompt, prm = load_prompt("chat"), out / "prm" / "0"
    assert Scorer(prm, prompt, device="cpu").dtype == "float32"  # as a CPU computes
    assert Scorer(prm, prompt, device="cpu", dtype="float16").dtype == "float16"
    ids = torch.arange(4, 12)[None]
    for kind, auto in (
        ("policy", AutoModelForCausalLM),
        ("prm", AutoModelForSequenceClassification),
    ):
        weights = load_file(out / kind / "0" / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float16}
        before, after = (
            auto.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (trained / kind, out / kind / "0")
        )
        assert torch.allclose(before, after, atol=0.05)
        assert not torch.equal(before, after)

    assert CliRunner().invoke(app, command).exit_code == 2  # they are there already
    large = copy("policy")
    edit(large, lambda weights: weights["model.norm.weight"].fill_(1e6))
    broken = Registry(tmp_path / "broken")
    broken.adopt(large, "policy/0")
    refused = CliRunner().invoke(
        app, ["checkpoints", "export", str(tmp_path / "x"), "--registry", str(broken.root)]
    )
    assert refused.exit_code == 2
    assert "take bfloat16" in refused.output
    assert not (tmp_path / "x" / "policy" / "0").exists()
