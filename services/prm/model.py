"""A one-label classifier that computes rows of tokens, and keeps what it computed.

A causal model's keys, values and logit of a token depend on what comes before it alone. They are
kept, least recently used first out, and serve every row that begins with the same tokens: the next
turn of an episode, another action in its state, rows that are computed in the same pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from prometheus_client import Counter, Gauge
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from agentprm.models.devices import pick_device, tokens_to_hold
from agentprm.models.loading import load_model
from agentprm.models.prefix_cache import PrefixCache
from agentprm.models.segments import NAME, attention, bytes_per_token, takes_segments
from agentprm.registry import CheckpointError
from services.prm.packing import Row
from services.prm.segment import Segment, Store

FORWARD_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Most tokens computed at once. A CPU is no faster on more, and a short request waits for the pass
before it."""
HELD_PER_COMPUTED = 32
"""Most tokens whose keys and values a pass reads, per token it may compute. On a GPU it may read
fewer."""

TOKENS = Counter("agentprm_prm_tokens_total", "Tokens of scored rows by source", ["source"])
PREFIXES = Counter(
    "agentprm_prm_prefixes_total", "Rows by whether their beginning was known", ["result"]
)
KEPT_TOKENS = Gauge("agentprm_prm_kept_tokens", "Tokens there is room for in what is kept")


@dataclass(frozen=True, eq=False)
class Entry:
    """A conversation's tokens and what is stored for them."""

    ids: tuple[int, ...]
    store: Store


class Classifier:
    """A checkpoint on a device. `logits` and `plain` are called from one thread at a time."""

    def __init__(self, path: Path, *, device: str, dtype: str, cache_bytes: int) -> None:
        """Load the Hugging Face directory `path`.

        Raises:
            CheckpointError: it is not a complete one-label classifier on a causal model.
            OSError, ValueError: transformers cannot read it.
        """
        self.device = pick_device(device)
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        require_one_label(path, config)
        model = load_model(
            path,
            AutoModelForSequenceClassification,
            device=self.device,
            dtype=dtype,
            unused=["lm_head."],
        )
        if not hasattr(model, "score"):
            raise CheckpointError(
                f"{path} is a {type(model).__name__}, which does not score at the last token"
            )
        self._model: Any = model.eval()
        self._body: Any = model.base_model
        self.dtype = str(model.dtype).removeprefix("torch.")
        # As the trainer computes it: bf16 would round logits to two digits, and actions would tie.
        self.head: Any = model.score.float()
        self.parameters = sum(p.numel() for p in model.parameters())
        text = config.get_text_config()
        self.vocabulary: int = text.vocab_size
        self.max_tokens: int | None = getattr(text, "max_position_embeddings", None)
        self.forward_tokens = FORWARD_TOKENS.get(self.device.type, FORWARD_TOKENS["cuda"])
        per_token = bytes_per_token(model)
        most = HELD_PER_COMPUTED * self.forward_tokens
        self.held_tokens = tokens_to_hold(self.device, per_token, most)
        self.packs = takes_segments(self._body, text)
        """Whether it scores several actions behind one state, and keeps what it computed."""
        self._attention: str = model.config._attn_implementation
        if self.packs:
            model.set_attn_implementation(NAME)
        self._cache: PrefixCache[Entry] = PrefixCache(cache_bytes // per_token)

    def cost(self, row: Row) -> int:
        """Tokens of `row` that are to be computed, at most. Any thread may ask."""
        return len(row) - self._cache.common(row.ids[: row.trunk])

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> list[list[float]]:
        """The logits at the ends of each row. Independent of what else is in the batch."""
        if not self.packs:
            return [self._alone(row) for row in rows]
        return [logits for part in self._passes(rows) for logits in self._together(part)]

    @torch.inference_mode()
    def plain(self, ids: Sequence[int]) -> float:
        """The last logit of a sequence as transformers computes it, nothing kept."""
        with attention(self._model, self._attention):
            return self._alone(Row(list(ids), [len(ids) - 1], len(ids)))[0]

    def _passes(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows to compute together. A single row may be larger than a pass."""
        part: list[Row] = []
        new = held = 0
        for row in rows:
            cost = self.cost(row)
            full = new + cost > self.forward_tokens or held + len(row) > self.held_tokens
            if part and full:
                yield part
                part, new, held = [], 0, 0
            part.append(row)
            new += cost
            held += len(row)
        if part:
            yield part

    def _together(self, rows: Sequence[Row]) -> list[list[float]]:
        planned = [self._segment(row) for row in rows]
        computed = [segment for segment, _ in planned if len(segment)]
        if computed:
            try:
                self._compute(computed)
            except BaseException:
                self._cache.clear()  # some of what it promises is not there
                raise
        for _, entry in planned:
            if entry is not None:
                entry.store.trim(entry.store.length)
                self._cache.resize(entry, behind=entry.store.room - len(entry.ids))
        new = sum(map(len, computed))
        TOKENS.labels("computed").inc(new)
        TOKENS.labels("cached").inc(sum(map(len, rows)) - new)
        KEPT_TOKENS.set(self._cache.tokens)
        return [segment.logits() for segment, _ in planned]

    def _segment(self, row: Row) -> tuple[Segment, Entry | None]:
        """What there is to compute of `row`, which the cache promises from here on, and the entry
        in whose store that happens."""
        trunk = tuple(row.ids[: row.trunk])
        entry, common = self._cache.find(trunk)
        PREFIXES.labels("miss" if entry is None else "hit").inc()
        if entry is None:
            store, source = Store(), None
        elif common == len(row):
            return Segment(common, entry.store, row, None), None
        elif common == len(entry.ids) == entry.store.length:
            store, source = entry.store, None
        else:  # what follows in the store is another conversation's, or another row's
            store, source = Store(), entry.store
        store.take(len(row))
        segment = Segment(common, store, row, source)
        extended = entry if source is None else None
        if common == len(trunk):
            return segment, extended
        entry = Entry(trunk, store)
        self._cache.add(entry, replaces=extended)
        return segment, entry

    def _compute(self, segments: Sequence[Segment]) -> None:
        ids = [token for segment in segments for token in segment.row.ids[segment.start :]]
        positions = [at for segment in segments for at in segment.positions()]
        output = self._body(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            segments=segments,
        )
        values = iter(self.head(output.last_hidden_state[0].float()).flatten().tolist())
        for segment in segments:
            segment.keep(list(islice(values, len(segment))))

    def _alone(self, row: Row) -> list[float]:
        ids = torch.tensor([row.ids], device=self.device)
        hidden = self._body(input_ids=ids, use_cache=False).last_hidden_state[0, row.ends]
        logits: list[float] = self.head(hidden.float()).flatten().tolist()
        return logits


def require_one_label(path: Path, config: PretrainedConfig) -> None:
    """Refuse a classifier of several classes.

    Raises:
        CheckpointError: it is one.
    """
    if config.num_labels != 1:
        raise CheckpointError(
            f"{path} has {config.num_labels} labels; a PRM is a sequence classifier with one"
        )
