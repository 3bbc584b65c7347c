"""log π(a | s) of a checkpoint, for actions that another policy sampled.

An action's probability is that of the policy as it acts, which is how the policy service reports it
(`Candidate.log_prob`): where commands are drawn from the admissible ones it is
π(REASON | s) · π(ACTION | s, REASON) / Σ_c π(c | s, REASON), the sum over the admissible commands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentprm.encoding import closed, encode_answers, end_mark, eos_tokens, up_to_end
from agentprm.models.prefix_cache import common_length
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Action, Candidate, Decoding, State
from services.trainer.training.fitting import load_tokenizer, processes
from services.trainer.training.policy_model import load_policy

PACKED_TOKENS = 1024
"""Most tokens of answers behind one state in a forward pass."""


class Reference:
    """The policy in a directory, held in memory: bfloat16 on a GPU, float32 on a CPU.

    Raises:
        CheckpointError: as `load_tokenizer`.
    """

    def __init__(self, directory: Path, prompt: PromptTemplate, decoding: Decoding) -> None:
        device = processes().device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._model: Any = load_policy(directory, dtype)
        self._model = self._model.to(device).eval()
        self._tokenizer: Any = load_tokenizer(directory)
        self._prompt = prompt
        self._decoding = decoding
        behind = closed(self._tokenizer, "x")[1:]
        eos = eos_tokens(self._model.generation_config, self._tokenizer)
        self._ends = eos | end_mark(self._tokenizer, behind)

    @torch.inference_mode()
    def log_probs(self, state: State, candidates: Sequence[Candidate]) -> list[float]:
        """log π(a | s) of each candidate, in nats.

        Raises:
            ValueError: as `agentprm.encoding.encode_answers`.
        """
        commands = [command for command in dict.fromkeys(state.admissible) if command]
        if self._decoding is Decoding.FREE or not commands:
            return self._free(state, candidates)
        reasons = {candidate.action.reason for candidate in candidates}
        of_reason = {reason: self._choices(state, reason, commands) for reason in reasons}
        return [of_reason[c.action.reason][c.action.command] for c in candidates]

    def _free(self, state: State, candidates: Sequence[Candidate]) -> list[float]:
        prompt, answers = self._encode(state, [candidate.text for candidate in candidates])
        answers = [ids[: c.tokens] for ids, c in zip(answers, candidates, strict=True)]
        return [float(steps.sum()) for steps in self._score(prompt, answers)]

    def _choices(self, state: State, reason: str, commands: Sequence[str]) -> dict[str, float]:
        """Of the reason with each command: log π(REASON), plus the log-softmax over commands."""
        probes = [self._text(reason, probe) for probe in ("x", "0")]
        texts = [self._text(reason, command) for command in commands]
        prompt, (one, other, *answers) = self._encode(state, [*probes, *texts])
        opening = one[: common_length(one, other)]
        steps = self._score(prompt, answers)
        shared = [common_length(opening, ids) for ids in answers]
        among = torch.stack([values.sum() for values in steps]).log_softmax(0)
        return {
            command: float(values[:length].sum() + choice)
            for command, values, length, choice in zip(commands, steps, shared, among, strict=True)
        }

    def _text(self, reason: str, command: str) -> str:
        return self._prompt.action_text(Action(reason=reason, command=command))

    def _encode(self, state: State, texts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """The ids of the conversation, and those of each answer up to its end-of-turn mark."""
        prompt, answers = encode_answers(self._tokenizer, self._prompt.messages(state), texts)
        return prompt, [up_to_end(ids, self._ends) for ids in answers]

    def _score(self, prompt: list[int], answers: Sequence[list[int]]) -> list[Tensor]:
        """The log-probabilities of each answer's tokens, on the CPU."""
        return [
            values for group in _groups(answers) for values in self._score_together(prompt, group)
        ]

    def _score_together(self, prompt: list[int], answers: Sequence[list[int]]) -> list[Tensor]:
        """Answers side by side behind one prompt; each sees the prompt and itself."""
        first = len(prompt) - 1  # its last token predicts the first of every answer
        lengths = [len(ids) for ids in answers]
        ids = prompt + [token for answer in answers for token in answer]
        positions = list(range(len(prompt)))
        owner = torch.zeros(len(ids), dtype=torch.long)
        predictors: list[int] = []
        at = len(prompt)
        for k, length in enumerate(lengths):
            positions += range(len(prompt), len(prompt) + length)
            owner[at : at + length] = k + 1
            predictors += [first, *range(at, at + length - 1)]
            at += length
        seen = (owner[None, :] == owner[:, None]) | (owner[None, :] == 0)
        mask = torch.zeros(seen.shape, dtype=self._model.dtype)
        mask.masked_fill_(~seen.tril(), torch.finfo(self._model.dtype).min)
        device = self._model.device
        logits = self._model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            attention_mask=mask[None, None].to(device),
            use_cache=False,
            logits_to_keep=torch.arange(first, len(ids), device=device),
        ).logits[0]
        wanted = torch.tensor(ids[len(prompt) :], device=device)
        rows = torch.tensor(predictors, device=device) - first
        chosen = logits[rows, wanted].float() - logits.float().logsumexp(-1)[rows]
        return list(chosen.cpu().split(lengths))


def _groups(answers: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    for ids in answers:
        if group and sum(map(len, group)) + len(ids) > PACKED_TOKENS:
            yield group
            group = []
        group.append(ids)
    yield group
