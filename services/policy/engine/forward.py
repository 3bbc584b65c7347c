"""One forward pass for the new tokens of many conversations, in two ways.

`Packed` computes them in one row without padding, each conversation on the storage it is kept in.
`Padded` is for the models that cannot, and for GPUs, where few large operations are what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch

from agentprm.models.segments import NAME, attention, takes_segments
from services.policy.engine.kv import BatchKV
from services.policy.engine.limits import window
from services.policy.engine.segment import Segment

STEPS = 16
"""Columns of padded storage for decoding before it has to grow."""


class Batch(Protocol):
    """Conversations that are computed side by side, pass by pass."""

    def compute(
        self, segments: Sequence[Segment], last: Sequence[int], *, keep: bool
    ) -> torch.Tensor:
        """Logits [tokens, V] of the last `last[k]` tokens of segment k, segment after segment.

        The first pass of a batch says what there is; later ones go on behind what is computed, in
        some of its conversations. With `keep` the keys and values go to the segments' stores.
        """


class Forward:
    """How a model computes."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self.model = model
        self.packs = model.device.type == "cpu" and takes_segments(model.base_model, config)
        """Whether it computes without padding, and stores all keys and values."""
        self.window = window(config)
        self.slides_in_some = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        """Whether the model takes a mask for each type of layer; without types all are alike."""
        self._attention: str = model.config._attn_implementation
        if self.packs:
            model.set_attn_implementation(NAME)

    def batch(self) -> Batch:
        """A batch that has yet to begin."""
        return Packed(self) if self.packs else Padded(self)

    def cost(self, lengths: Sequence[int]) -> int:
        """Tokens that segments of these lengths take side by side."""
        return sum(lengths) if self.packs else len(lengths) * max(lengths)

    def plain(self, ids: Sequence[int]) -> torch.Tensor:
        """The last logits [V] of a sequence as transformers computes it."""
        tokens = torch.tensor([ids], device=self.model.device)
        with attention(self.model, self._attention):
            logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits[0, -1]
        return logits


class Packed:
    """All new tokens in one row; the attention reads and writes the stores."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    def compute(
        self, segments: Sequence[Segment], last: Sequence[int], *, keep: bool
    ) -> torch.Tensor:
        """Logits of the last tokens of each segment (see `Batch`); everything is kept."""
        for segment in segments:
            segment.store.reserve(segment.start + len(segment))
        ids = [token for segment in segments for token in segment.tokens]
        positions = [at for segment in segments for at in segment.positions]
        ends = accumulate(len(segment) for segment in segments)
        wanted = [
            at for end, count in zip(ends, last, strict=True) for at in range(end - count, end)
        ]
        device = self._forward.model.device
        output = self._forward.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, device=device),
            segments=segments,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


class Padded:
    """A row for each conversation, padded at the left, on a copy of what is stored of it.

    Positions and what sees what are given explicitly.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._kv: BatchKV | None = None
        self._rows: dict[int, int] = {}
        self._columns: list[list[int]] = []
        """For each row where in the batch the columns of its store are."""

    def compute(
        self, segments: Sequence[Segment], last: Sequence[int], *, keep: bool
    ) -> torch.Tensor:
        """Logits of the last tokens of each segment (see `Batch`)."""
        kv = self._begun(segments)
        past = kv.get_seq_length()
        width = max(map(len, segments))
        tokens, positions = np.zeros((2, len(segments), width), dtype=np.int64)
        # Padding sees itself: a token that sees nothing would become NaN.
        mask = np.zeros((len(segments), width, past + width), dtype=np.bool_)
        mask[:, range(width), range(past, past + width)] = True
        longest = max(segment.start + len(segment) for segment in segments)
        window = self._forward.window or longest
        near = mask.copy() if window < longest else None
        for number, segment in enumerate(segments):
            begin = width - len(segment)
            tokens[number, begin:] = segment.tokens
            positions[number, begin:] = segment.positions
            columns = self._columns[number]
            columns[segment.start :] = range(past + begin, past + width)
            seen = segment.seen()
            mask[number, begin:, columns] = seen.T
            if near is not None:
                near[number, begin:, columns] = (seen & segment.near(window)).T
        logits = self._run(kv, tokens, positions, self._masks(mask, near), max(last))
        if keep:
            self._save(kv, segments)
        return torch.cat([row[-count:] for row, count in zip(logits, last, strict=True)])

    def _masks(self, mask: Any, near: Any | None) -> Any:
        """What the model takes as its mask, where layers that slide see `near` only."""
        if near is None:
            return self._additive(mask)
        if not self._forward.slides_in_some:
            return self._additive(near)
        return {"full_attention": self._additive(mask), "sliding_attention": self._additive(near)}

    def _additive(self, mask: Any) -> torch.Tensor:
        model = self._forward.model
        seen = torch.as_tensor(mask, device=model.device)
        additive = torch.zeros(seen.shape, dtype=model.dtype, device=model.device)
        return additive.masked_fill_(~seen, torch.finfo(model.dtype).min)[:, None]

    def _run(self, kv: BatchKV, tokens: Any, positions: Any, mask: Any, last: int) -> torch.Tensor:
        model = self._forward.model
        logits: torch.Tensor = model(
            input_ids=torch.as_tensor(tokens, device=model.device),
            position_ids=torch.as_tensor(positions, device=model.device),
            attention_mask=mask,
            past_key_values=kv,
            use_cache=True,
            logits_to_keep=last,
        ).logits
        return logits

    def _begun(self, segments: Sequence[Segment]) -> BatchKV:
        """The keys and values of the segments' conversations, in that order."""
        if self._kv is None:
            layers = self._forward.model.config.get_text_config().num_hidden_layers
            room = max(map(len, segments)) + STEPS
            self._kv = BatchKV(layers, [(s.store, s.start) for s in segments], room)
            self._columns = [list(range(segment.start)) for segment in segments]
        elif len(segments) < len(self._columns):
            rows = [self._rows[id(segment.store)] for segment in segments]
            self._kv.select(torch.tensor(rows, device=self._forward.model.device))
            self._columns = [self._columns[row] for row in rows]
        self._rows = {id(segment.store): row for row, segment in enumerate(segments)}
        return self._kv

    def _save(self, kv: BatchKV, segments: Sequence[Segment]) -> None:
        """Put the new columns into the stores."""
        end = kv.get_seq_length()
        for row, segment in enumerate(segments):
            new = slice(end - len(segment), end)
            segment.store.reserve(segment.start + len(segment))
            for number, layer in enumerate(kv.layers):
                keys, values = layer.keys[row, :, new], layer.values[row, :, new]
                segment.store.write(number, segment.start, keys, values)
