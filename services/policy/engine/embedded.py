"""The engine inside the service's process: any `AutoModelForCausalLM`, by transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog
import torch
from prometheus_client import Counter
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentprm.encoding import eos_tokens
from agentprm.models.devices import pick_device, tokens_to_hold
from agentprm.models.loading import load_model
from agentprm.models.prefix_cache import common_length
from agentprm.models.segments import bytes_per_token
from agentprm.models.surplus_tokens import without_surplus
from agentprm.protocol import Message
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
from services.policy.engine.branches import Branch, Branches
from services.policy.engine.codec import Codec, cut, stopper
from services.policy.engine.forward import Batch, Forward
from services.policy.engine.kept import Kept, Row, Store, Tail
from services.policy.engine.layout import Bounds, Planted, batches
from services.policy.engine.limits import max_length
from services.policy.engine.sampling import draw_tokens
from services.policy.engine.segment import Segment
from services.policy.engine.tree import build_trees
from services.policy.engine.wanted import require_wanted

NEW_TOKENS = 16_384
"""Most tokens of one forward pass, padding included."""
NEW_TOKENS_CPU = 1024
"""`NEW_TOKENS` on a CPU: more would only fall out of its caches."""
HELD_TOKENS = 131_072
"""Most tokens whose keys and values a batch holds, padding included. On a GPU it may hold fewer."""
LOGITS = 2**28
"""Most logits of one forward pass: 1 GiB. Few of its tokens have any: the last ones of prompts,
those of answers."""
TREE_NODES = 256
"""Most command tokens packed into one row. Those of different reasons do not see each other, so a
wider row is mostly mask: 512 takes 1.4 times as long for the commands behind 16 reasons."""
GUESS = 16
"""Most tokens of an answer that are computed with its prompt, in the hope that they are drawn."""
RETRIES = 3
"""How often what a device had no memory for is computed again, each time in batches of half."""

FORWARD_TOKENS = Counter(
    "agentprm_policy_forward_tokens_total", "Tokens through the model, padding included", ["phase"]
)

log = structlog.get_logger()

R = TypeVar("R")


class EmbeddedEngine(Engine):
    """A causal language model, its tokenizer, and the keys and values of recent conversations.

    Raises:
        ValueError: as `Codec`.
    """

    def __init__(self, model: Any, tokenizer: Any, *, cache_bytes: int) -> None:
        text_config = model.config.get_text_config()
        self.model = model.eval()
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._forward = Forward(self.model)
        self._bounds = Bounds(
            new=NEW_TOKENS_CPU if model.device.type == "cpu" else NEW_TOKENS,
            logits=LOGITS // text_config.vocab_size,
            held=tokens_to_hold(model.device, bytes_per_token(model), HELD_TOKENS),
        )
        self._kept = Kept(cache_bytes // bytes_per_token(model))
        self.max_length = max_length(text_config)
        eos = eos_tokens(model.generation_config, tokenizer)
        self.codec = Codec(tokenizer, eos, self.max_length)

    @classmethod
    def load(cls, path: Path, *, device: str, dtype: str, cache_bytes: int) -> EmbeddedEngine:
        """The checkpoint in the directory `path`: safetensors only, nothing fetched or executed.

        Keys and values that are kept between turns take up to `cache_bytes`.

        Raises:
            CheckpointError: weights, configuration and tokenizer do not belong together.
            OSError, ValueError, RuntimeError: transformers cannot read it, or `Codec` refuses its
                tokenizer.
        """
        model = load_model(path, AutoModelForCausalLM, device=pick_device(device), dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        tokenizer = without_surplus(path, tokenizer, model.get_input_embeddings().num_embeddings)
        return cls(model, tokenizer, cache_bytes=cache_bytes)

    def generate(self, prompts: Sequence[Prompt], draw: Draw) -> list[list[Sample]]:
        """Samples of each prompt, which goes on where a kept conversation ends."""
        return self._with_memory(lambda bounds: self._generate(prompts, draw, bounds))

    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """All answers to a question as one tree (or a few) behind the prompt's keys and values."""
        return self._with_memory(lambda bounds: self._score(questions, bounds))

    def _with_memory(self, compute: Callable[[Bounds], R]) -> R:
        """What `compute` gives; where the device is out of memory, with nothing kept and less
        at once.
        """
        bounds = self._bounds
        for _ in range(RETRIES):
            try:
                return compute(bounds)
            except torch.OutOfMemoryError as error:
                log.warning("out of memory, kept conversations are forgotten", reason=str(error))
            # Here, as the error holds the tensors of the failed pass.
            self._kept.clear()
            torch.cuda.empty_cache()
            bounds = bounds.halved()
        return compute(bounds)

    @torch.inference_mode()
    def _generate(
        self, prompts: Sequence[Prompt], draw: Draw, bounds: Bounds
    ) -> list[list[Sample]]:
        """Compute what is not known yet, then sample, in batches of prompts of similar length."""
        lengths = []
        encoded = []
        for prompt in prompts:
            ids = self.codec.prompt(prompt.messages)
            lengths.append(len(ids))
            encoded.append(ids + self.codec.opening(prompt.opening))
            require_room(len(encoded[-1]) + 1, self.max_length)
        samples: list[list[Sample]] = [[] for _ in prompts]
        room = draw.n * min(draw.max_tokens, self.max_length)
        waiting = (self._branches(row, prompts[row.number], draw) for row in self._rows(encoded))
        for group in batches(waiting, self._forward.cost, bounds, room):
            self._decode(group, draw)
            for branches in group:
                row = branches.row
                samples[row.number] = [self._sample(row, branch, draw) for branch in branches.all]
                length = lengths[row.number]
                tail = branches.tail(length) if self._forward.packs else Tail()
                self._kept.keep(row, length, tail)
        return samples

    @torch.inference_mode()
    def _score(self, questions: Sequence[Question], bounds: Bounds) -> list[list[Score]]:
        encoded = []
        answers: list[list[list[int]]] = []
        for question in questions:
            ids = self.codec.prompt(question.messages)
            found = self.codec.answers([opening + rest for opening, rest in question.answers])
            require_room(len(ids) + max(map(len, found)), self.max_length)
            encoded.append(ids)
            answers.append(found)
        trees = [
            Planted(row, tree, numbers)
            for row in self._rows(encoded)
            for tree, numbers in build_trees(row.ids[row.start :], answers[row.number], TREE_NODES)
        ]
        trees.sort(key=lambda planted: planted.new)
        openings = [
            {opening: self.codec.opening(opening) for opening in {text for text, _ in q.answers}}
            for q in questions
        ]
        scores: list[dict[int, Score]] = [{} for _ in questions]
        for group in batches(trees, self._forward.cost, bounds):
            for planted, log_probs in zip(group, self._edges(group), strict=True):
                number = planted.row.number
                for answer, path in zip(planted.answers, planted.tree.paths, strict=True):
                    ids = answers[number][answer]
                    steps = [log_probs[edge] for edge in path]
                    opening = openings[number][questions[number].answers[answer][0]]
                    shared = common_length(opening, ids)
                    scores[number][answer] = Score(ids, sum(steps), sum(steps[:shared]))
        if self._forward.packs:
            # Of several trees of a conversation its store holds the one that was computed last.
            for planted in {planted.row.number: planted for planted in trees}.values():
                self._kept.keep(planted.row, len(planted.row.ids), planted.tail())
        return [[found[answer] for answer in range(len(found))] for found in scores]

    def encode(self, messages: tuple[Message, ...]) -> None:
        """Encode a conversation before its turn."""
        self.codec.prompt(messages)

    def token_texts(self, sample: Sample) -> list[str]:
        """The text of each token that the sample's text is made of."""
        return self.codec.shown(sample)

    @torch.inference_mode()
    def check(self) -> None:
        """Finite logits, the same as transformers' own, also where a prefix is computed before.

        Raises:
            ValueError: they are not.
        """
        ids = self.codec.prompt((Message(role="user", content="You are in the middle of a room."),))
        whole = self._forward.plain(ids)
        if not torch.isfinite(whole).all():
            raise ValueError("its logits are not finite")
        row = Row(0, ids, Store(), len(ids) // 2, None, 0)
        first = Segment(0, row.store, ids[: row.start], range(row.start), 0)
        self._forward.batch().compute([first], [1], keep=True)
        parts = self._forward.batch().compute([row.segment()], [1], keep=True)[0]
        tolerance = 1e-3 if whole.dtype == torch.float32 else 0.5
        if not torch.allclose(whole, parts, atol=tolerance, rtol=tolerance):
            raise ValueError("its keys and values cannot be kept from turn to turn")

    def _rows(self, encoded: Sequence[list[int]]) -> Iterator[Row]:
        """What there is to compute of each, the shortest first."""
        busy: set[Store] = set()
        for number in sorted(range(len(encoded)), key=lambda k: len(encoded[k])):
            row = self._kept.row(number, encoded[number], busy)
            busy.add(row.store)
            yield row

    def _compute(
        self,
        batch: Batch,
        segments: Sequence[Segment],
        phase: str,
        last: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Logits [tokens, V] of the last `last[k]` tokens of segment k; without, of all tokens."""
        lengths = [len(segment) for segment in segments]
        FORWARD_TOKENS.labels(phase).inc(self._forward.cost(lengths))
        return batch.compute(segments, last or lengths, keep=phase == "prefill")

    def _branches(self, row: Row, prompt: Prompt, draw: Draw) -> Branches:
        room = min(draw.max_tokens, self.max_length - len(row.ids))
        guess = self.codec.guess(prompt, draw.stop)[: min(room - 1, GUESS)]
        return Branches(row, prompt.key, draw, room, guess)

    def _decode(self, group: Sequence[Branches], draw: Draw) -> None:
        """Compute the prompts, then sample until every branch is finished."""
        batch = self._forward.batch()
        stopped = stopper(self.codec, draw.stop)

        def extend(growing: Sequence[tuple[Branches, list[int]]], logits: torch.Tensor) -> None:
            uniform = np.concatenate([branches.uniform(numbers) for branches, numbers in growing])
            tokens, log_probs = draw_tokens(logits, draw.temperature, uniform)
            drawn = zip(tokens.tolist(), log_probs.tolist(), strict=True)
            for branches, numbers in growing:
                # each takes its own of `drawn`: zip asks `numbers` first
                for number, (token, log_prob) in zip(numbers, drawn, strict=False):
                    branches.extend(number, token, log_prob, self.codec.ends, stopped)

        last = [len(branches.guess) + 1 for branches in group]
        known = self._prefill(batch, group, last)
        begins = dict(zip(group, accumulate(last, initial=0), strict=False))
        for depth in range(max(last)):
            growing = [
                (branches, numbers) for branches in group if (numbers := branches.following(depth))
            ]
            if growing:
                at = [begins[branches] + depth for branches, numbers in growing for _ in numbers]
                extend(growing, known[at])
        for branches in group:
            branches.settle()
        while growing := [
            (branches, numbers) for branches in group if (numbers := branches.open())
        ]:
            require_wanted()
            segments = [branches.segment() for branches, _ in growing]
            extend(growing, self._compute(batch, segments, "decode"))

    def _prefill(
        self, batch: Batch, group: Sequence[Branches], last: Sequence[int]
    ) -> torch.Tensor:
        """Compute the prompts and what is guessed of answers: logits of the last tokens."""
        PROMPT_TOKENS.labels("cached").inc(sum(branches.row.start for branches in group))
        PROMPT_TOKENS.labels("computed").inc(sum(branches.row.new for branches in group))
        segments = [branches.row.segment(branches.guess) for branches in group]
        return self._compute(batch, segments, "prefill", last)

    def _sample(self, row: Row, branch: Branch, draw: Draw) -> Sample:
        ids = branch.ids[:-1] if branch.end == "mark" else branch.ids
        return Sample(
            text=cut(self.codec.text(ids), draw.stop),
            ids=branch.ids,
            log_probs=branch.log_probs,
            prompt_tokens=len(row.ids),
            finished=branch.end != "limit",
        )

    def _edges(self, group: Sequence[Planted]) -> list[list[float]]:
        """Of each tree the log-probabilities of its edges."""
        segments = [planted.segment() for planted in group]
        last = [planted.logits for planted in group]
        logits = self._compute(self._forward.batch(), segments, "score", last).float()
        nodes, predicted = [], []
        for end, planted in zip(accumulate(last), group, strict=True):
            nodes += [end - planted.new + node for node in planted.tree.edge_nodes]
            predicted += planted.tree.edge_tokens
        at, token = torch.from_numpy(np.array([nodes, predicted])).to(logits.device)
        values = iter((logits[at, token] - logits.logsumexp(dim=-1)[at]).tolist())
        return [list(islice(values, len(planted.tree.edge_nodes))) for planted in group]
