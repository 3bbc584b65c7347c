"""The engine inside the service's process: any `AutoModelForCausalLM`, by transformers.

Masks and positions are always given explicitly, as every batch mixes conversations of different
lengths, several samples side by side in one row, or a tree of commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prometheus_client import Counter
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentprm.protocol import Message
from agentprm.vocabulary import within
from agentprm.weights import copy_from_file, require_all
from services.policy.engine import (
    PROMPT_TOKENS,
    Draw,
    Engine,
    Prompt,
    Question,
    Sample,
    Score,
    require_room,
)
from services.policy.engine.codec import Codec, cut, stopper
from services.policy.engine.kv import BatchKV
from services.policy.engine.layout import (
    Layout,
    Packed,
    Row,
    batches,
    prefill_layout,
    tree_layout,
)
from services.policy.engine.limits import eos_tokens, max_length, pick_device
from services.policy.engine.prefix_cache import Entry, PrefixCache, common_length
from services.policy.engine.sampling import draw_tokens, generator
from services.policy.engine.tree import build_trees

NEW_TOKENS = 16_384
"""Most tokens of one forward pass, padding included."""
NEW_TOKENS_CPU = 2048
"""The same on a CPU: more would only fall out of its caches (20 % slower at 8192)."""
LOGITS = 2**28
"""Most logits of one forward pass: 1 GiB."""
TREE_NODES = 256
"""Most command tokens packed into one row. Those of different reasons do not see each other, so a
wider row is mostly mask: 512 takes 1.4 times as long for the commands behind 16 reasons."""
STEPS = 16
"""Columns of storage for decoding before it has to grow, per sample."""

FORWARD_TOKENS = Counter(
    "agentprm_policy_forward_tokens_total", "Tokens through the model, padding included", ["phase"]
)


@dataclass
class _Branch:
    """One sample in the making."""

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    end: str = ""
    """`mark`, `stop` or `limit` once it is finished."""


class EmbeddedEngine(Engine):
    """A causal language model, its tokenizer, and the keys and values of recent conversations."""

    def __init__(self, model: Any, tokenizer: Any, *, cache_tokens: int) -> None:
        text_config = model.config.get_text_config()
        self.model = model.eval()
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._device = model.device
        self._layers: int = text_config.num_hidden_layers
        self._new_tokens = max(
            1,
            min(
                NEW_TOKENS_CPU if model.device.type == "cpu" else NEW_TOKENS,
                LOGITS // text_config.vocab_size,
            ),
        )
        self._cache: PrefixCache[Entry] = PrefixCache(cache_tokens)
        self.codec = Codec(tokenizer, eos_tokens(model.generation_config, tokenizer))
        self.max_length = max_length(text_config)

    @classmethod
    def load(cls, path: Path, *, device: str, dtype: str, cache_tokens: int) -> EmbeddedEngine:
        """The checkpoint in the directory `path`: safetensors only, nothing fetched or executed.

        Raises:
            CheckpointError: weights, configuration and tokenizer do not belong together.
            OSError, ValueError, RuntimeError: transformers cannot read it.
        """
        where = pick_device(device)
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="float32" if dtype == "auto" and where.type == "cpu" else dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        require_all(path, info)
        model = model.to(where)
        copy_from_file(model)
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        tokenizer = within(path, tokenizer, model.get_input_embeddings().num_embeddings)
        return cls(model, tokenizer, cache_tokens=cache_tokens)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], draw: Draw) -> list[list[Sample]]:
        """Prefill what is not known yet, then sample in batches of prompts of similar length."""
        samples: list[list[Sample]] = [[] for _ in prompts]
        rows = []
        for number, prompt in enumerate(prompts):
            ids = self.codec.prompt(prompt.messages) + self.codec.opening(prompt.opening)
            require_room(len(ids) + 1, self.max_length)
            rows.append(self._row(number, ids))
        room = draw.n * min(draw.max_tokens, self.max_length)
        for group in batches(rows, self._new_tokens, room):
            kv, visible, logits = self._prefill(group, draw.n * STEPS)
            keys = [prompts[row.number].key for row in group]
            branches = self._decode(group, keys, kv, visible, logits, draw)
            for row, found in zip(group, branches, strict=True):
                samples[row.number] = [self._sample(row, branch, draw) for branch in found]
        return samples

    @torch.inference_mode()
    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """All answers to a question as one tree (or a few) behind the prompt's keys and values."""
        scores: list[list[Score | None]] = []
        packed: list[Packed] = []
        openings: list[list[int]] = []
        answers: list[list[list[int]]] = []
        for number, question in enumerate(questions):
            row = self._row(number, self.codec.prompt(question.messages))
            found = self.codec.answers([opening + rest for opening, rest in question.answers])
            require_room(len(row.ids) + max(map(len, found)), self.max_length)
            for tree, numbers in build_trees(row.ids[row.hit :], found, TREE_NODES):
                packed.append(Packed(row, tree, number, numbers))
            openings.append(
                [
                    common_length(self.codec.opening(opening), ids)
                    for (opening, _), ids in zip(question.answers, found, strict=True)
                ]
            )
            answers.append(found)
            scores.append([None] * len(found))
        for group in batches(packed, self._new_tokens):
            for item, log_probs in zip(group, self._score_trees(group), strict=True):
                for answer, path in zip(item.numbers, item.tree.paths, strict=True):
                    steps = log_probs[path]
                    opening = openings[item.question][answer]
                    scores[item.question][answer] = Score(
                        ids=answers[item.question][answer],
                        log_prob=float(steps.sum()),
                        opening_log_prob=float(steps[:opening].sum()),
                    )
        return [[score for score in found if score is not None] for found in scores]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, special ones included."""
        return self.codec.tokens(ids)

    @torch.inference_mode()
    def check(self) -> None:
        """Finite logits, and the same ones whether a prefix is computed before or at once."""
        ids = self.codec.prompt((Message(role="user", content="You are in the middle of a room."),))
        row = Row(0, ids)
        _, _, whole = self._prefill([row], 1)
        if not torch.isfinite(whole).all():
            raise ValueError("its logits are not finite")
        half = len(ids) // 2
        kv, _, _ = self._prefill([Row(0, ids[:half])], 1)
        entry = Entry(tuple(ids[:half]), kv.row(0, 0, 0, half))
        _, _, parts = self._prefill([Row(0, ids, entry, half)], 1)
        tolerance = 1e-3 if whole.dtype == torch.float32 else 0.5
        if not torch.allclose(whole, parts, atol=tolerance, rtol=tolerance):
            raise ValueError("its keys and values cannot be kept from turn to turn")

    # --- prefill --------------------------------------------------------------------------------

    def _row(self, number: int, ids: list[int]) -> Row:
        entry, common = self._cache.find(ids)
        return Row(number, ids, entry, common)

    def _prefill(
        self, rows: Sequence[Row], room: int
    ) -> tuple[BatchKV, torch.Tensor, torch.Tensor]:
        """Keys and values of the rows, which columns count [rows, columns], last logits [rows, V].

        The columns are those known from before, then the new tokens, aligned at the right.
        """
        room += max(row.new for row in rows)
        kv = BatchKV(self._layers, [(row.entry, row.hit) for row in rows], room)
        past = kv.get_seq_length()
        layout = prefill_layout(rows, past)
        logits = self._forward(kv, layout, "prefill", keep=1)
        PROMPT_TOKENS.labels("cached").inc(sum(row.hit for row in rows))
        PROMPT_TOKENS.labels("computed").inc(sum(row.new for row in rows))
        for number, row in enumerate(rows):
            if row.common < len(row.ids):
                end = kv.get_seq_length()
                entry = Entry(tuple(row.ids), kv.row(number, row.hit, end - row.new, end))
                extended = row.entry is not None and row.common == len(row.entry.ids)
                self._cache.add(entry, replaces=row.entry if extended else None)
        visible = torch.from_numpy(layout.mask[:, -1]).to(self._device)
        return kv, visible, logits[:, -1]

    def _forward(self, kv: BatchKV, layout: Layout, phase: str, keep: int = 0) -> torch.Tensor:
        """Logits [rows, tokens or the last `keep`, V] of new tokens; `kv` grows by them."""
        mask = torch.as_tensor(layout.mask, device=self._device)
        additive = torch.zeros(mask.shape, dtype=self.model.dtype, device=self._device)
        additive.masked_fill_(~mask, torch.finfo(self.model.dtype).min)
        FORWARD_TOKENS.labels(phase).inc(mask.shape[0] * mask.shape[1])
        positions = torch.as_tensor(layout.positions, device=self._device)
        output = self.model(
            input_ids=torch.as_tensor(layout.tokens, device=self._device),
            position_ids=positions.clamp(max=self.max_length - 1),
            attention_mask=additive[:, None],
            past_key_values=kv,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits
        return logits

    # --- decoding -------------------------------------------------------------------------------

    def _decode(
        self,
        rows: Sequence[Row],
        keys: Sequence[tuple[int, int]],
        kv: BatchKV,
        visible: torch.Tensor,
        logits: torch.Tensor,
        draw: Draw,
    ) -> list[list[_Branch]]:
        """`draw.n` branches side by side in each row: the prompt is held and read once.

        Finished rows are computed along until half of the batch is finished: to drop them is to
        copy what remains.
        """
        n = draw.n
        streams = [generator(key, 0) for key in keys]
        branches = [[_Branch() for _ in range(n)] for _ in rows]
        stopped = stopper(self.codec, draw.stop)
        alive = list(range(len(rows)))
        starts = np.array([len(row.ids) for row in rows])
        own = torch.eye(n, dtype=torch.bool, device=self._device)
        logits = logits[:, None].expand(-1, n, -1)
        for step in range(draw.max_tokens):
            uniform = np.stack([streams[row].random(n) for row in alive])
            tokens, log_probs = draw_tokens(logits, draw.temperature, uniform)
            for row, ids, values in zip(alive, tokens.tolist(), log_probs.tolist(), strict=True):
                full = (
                    step + 1 == draw.max_tokens or len(rows[row].ids) + step + 1 == self.max_length
                )
                for branch, token, value in zip(branches[row], ids, values, strict=True):
                    if branch.end:
                        continue
                    branch.ids.append(token)
                    branch.log_probs.append(value)
                    if token in self.codec.ends:
                        branch.end = "mark"
                    elif stopped(branch.ids):
                        branch.end = "stop"
                    elif full:
                        branch.end = "limit"
            open_ = [k for k, row in enumerate(alive) if not all(b.end for b in branches[row])]
            if not open_:
                break
            if 2 * len(open_) <= len(alive):
                keep = torch.tensor(open_, device=self._device)
                kv.select(keep)
                visible, tokens = visible[keep], tokens[keep]
                alive = [alive[k] for k in open_]
            mask = torch.cat(
                [
                    visible[:, None].expand(-1, n, -1),
                    own.repeat(1, step + 1).expand(len(alive), -1, -1),
                ],
                dim=-1,
            )
            positions = np.repeat(starts[alive, None] + step, n, axis=1)
            logits = self._forward(kv, Layout(tokens, positions, mask), "decode")
        return branches

    def _sample(self, row: Row, branch: _Branch, draw: Draw) -> Sample:
        ids = branch.ids[:-1] if branch.end == "mark" else branch.ids
        return Sample(
            text=cut(self.codec.text(ids), draw.stop),
            ids=branch.ids,
            log_probs=branch.log_probs,
            prompt_tokens=len(row.ids),
            finished=branch.end != "limit",
        )

    # --- scoring --------------------------------------------------------------------------------

    def _score_trees(self, group: Sequence[Packed]) -> list[np.ndarray[Any, Any]]:
        """Of each tree the log-probabilities of its edges."""
        room = max(item.new for item in group)
        kv = BatchKV(self._layers, [(item.row.entry, item.hit) for item in group], room)
        past = kv.get_seq_length()
        logits = self._forward(kv, tree_layout(group, past), "score").float()
        totals = logits.logsumexp(dim=-1)
        result = []
        for number, item in enumerate(group):
            nodes, predicted = torch.tensor(item.tree.edges, device=self._device).T
            values = logits[number, nodes, predicted] - totals[number, nodes]
            result.append(values.double().cpu().numpy())
        return result
