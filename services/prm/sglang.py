"""The PRM on SGLang servers started with `--is-embedding`, which hold the weights.

A server answers with one number per sequence, the raw logit at its last token, and keeps what it
read. So each score is a sequence of its own. Sequences of one batch that begin alike would all be
read from the start; so one of them goes ahead, and the others find its beginning read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import Counter
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from agentprm.models.prefix_cache import PrefixCache
from agentprm.models.replicas import Replicas
from agentprm.models.sglang import RESERVED, SGLangClient, SGLangError
from agentprm.models.sglang_weights import require_started_with, tag_of
from agentprm.models.surplus_tokens import without_surplus
from agentprm.prompts import PromptTemplate
from agentprm.registry import CheckpointError
from services.prm.ensemble import Ensemble
from services.prm.model import require_one_label
from services.prm.packing import Row
from services.prm.scorer import PROBE_TOLERANCE, BaseScorer, sigmoid

FORWARD_TOKENS = 65_536
"""Most tokens sent to the servers at once; they make passes of them as it suits them."""
SHARED = 64
"""A beginning of this many tokens is worth waiting for."""

TOKENS = Counter("agentprm_prm_sglang_tokens_total", "Tokens sent to SGLang", ["round"])


class SGLangScorer(BaseScorer):
    """A PRM checkpoint on `replicas`, once they were put on it. Called from several threads."""

    device = "sglang"
    forward_tokens = FORWARD_TOKENS

    def __init__(self, path: Path, prompt: PromptTemplate, replicas: Replicas) -> None:
        """What the service itself needs of the checkpoint in `path`; no server is touched.

        Raises:
            CheckpointError: it is not a one-label classifier, or its tokenizer has tokens that
                the model does not know: one of those ends a server's process.
            OSError, ValueError: transformers cannot read it.
        """
        options = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(path, **options)
        text = config.get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        require_one_label(path, config)
        tokenizer = without_surplus(path, tokenizer, text.vocab_size)
        length = getattr(text, "max_position_embeddings", None)
        super().__init__(prompt, tokenizer, length and length - RESERVED, packs=False)
        self.path = path
        self.tag = tag_of(path)
        self.dtype = "the servers'"  # they may have been told to take another than the checkpoint's
        self.parameters = _parameters(path)
        self._config: dict[str, Any] = text.to_dict()
        self._replicas = replicas

    def cost(self, row: Row) -> int:
        """Tokens of `row`. What the servers know of it is not known here."""
        return len(row)

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Q at the ends of each row.

        Raises:
            ProblemError: 422, a server refuses a sequence; 503, no replica can answer.
        """
        sequences = [_Sequence(tuple(row.ids[: end + 1])) for row in rows for end in row.ends]
        scores = iter(map(sigmoid, self._logits(sequences)))
        return [[next(scores) for _ in row.ends] for row in rows]

    def check(self) -> None:
        """Try every server that serves this checkpoint, as `try_on` does."""
        self._replicas.check(self)

    def compare(self, server: SGLangClient) -> None:
        """The server is one of reward models, and was started with this checkpoint's configuration,
        where that can be read here. Tensors of another shape would end its process; missing
        ones it would not notice.

        Raises:
            ValueError: it is not so.
            SGLangError: it does not answer.
        """
        info = server.model_info()
        if info.is_generation:
            raise ValueError(f"{server.url} generates text: start it with --is-embedding")
        require_started_with(server, self._config)

    def try_on(self, server: SGLangClient) -> None:
        """Scores are finite, and the same whether the server has read the beginning or not.

        Raises:
            CheckpointError: as `probe`.
            ValueError: it is not so.
            SGLangError: the server does not answer.
        """
        (row,) = self.probe().rows[-1:]
        for ids in (row.ids[: row.ends[0]], row.ids):
            first, again = (_score(server, ids) for _ in range(2))
            if not math.isfinite(first):
                raise ValueError(f"{self.path}: the score of a short episode is not finite")
            if abs(sigmoid(first) - sigmoid(again)) > PROBE_TOLERANCE:
                raise ValueError(f"{server.url} scores {first}, then {again}")

    def _logits(self, sequences: Sequence[_Sequence]) -> list[float]:
        ahead = _ahead(sequences)
        logits = [math.nan] * len(sequences)
        for name, numbers in (
            ("first", sorted(ahead)),
            ("second", [k for k in range(len(sequences)) if k not in ahead]),
        ):
            if not numbers:
                continue
            asked = [list(sequences[k].ids) for k in numbers]
            TOKENS.labels(name).inc(sum(map(len, asked)))
            found = self._replicas.classify(asked, self.tag, [sequences[k].home for k in numbers])
            for k, answer in zip(numbers, found, strict=True):
                logits[k] = answer.score
        return logits


@dataclass(frozen=True)
class OnServers(Ensemble):
    """The one checkpoint that SGLang servers hold."""

    scorer: SGLangScorer

    @classmethod
    def of(cls, ensemble: Ensemble) -> OnServers:
        """The only member of `ensemble`.

        Raises:
            CheckpointError: it has several; a server holds the weights of one.
        """
        scorer = ensemble.members[0].weights
        if len(ensemble.members) > 1 or not isinstance(scorer, SGLangScorer):
            raise CheckpointError("SGLang serves one PRM; an ensemble needs --engine embedded")
        return cls(ensemble.members, ensemble.checkpoints, ensemble.paths, scorer)

    @property
    def path(self) -> Path:
        """The directory that the servers load."""
        return self.scorer.path

    @property
    def tag(self) -> str:
        """What the servers call these weights."""
        return self.scorer.tag

    def compare(self, server: SGLangClient) -> None:
        """Refuse a server that was started otherwise (`SGLangScorer.compare`)."""
        self.scorer.compare(server)

    def try_on(self, server: SGLangClient) -> None:
        """Try the weights on a server (`SGLangScorer.try_on`)."""
        self.scorer.try_on(server)


@dataclass(frozen=True, eq=False)
class _Sequence:
    """Token ids, of which the last is scored."""

    ids: tuple[int, ...]

    @property
    def home(self) -> int:
        """Alike for all turns of an episode: it begins with the same tokens."""
        return hash(self.ids[: 2 * SHARED])


def _score(server: SGLangClient, ids: list[int]) -> float:
    """The logit of one sequence; NaN where the server fails, as it does on one that is NaN."""
    try:
        return server.classify([ids])[0].score
    except SGLangError as error:
        if error.status == 500:
            return math.nan
        raise


def _ahead(sequences: Sequence[_Sequence]) -> set[int]:
    """The numbers of those that go ahead: with none of them do they share half of their tokens.

    Longer ones first, as what begins a longer one is read with it.
    """
    total = sum(len(sequence.ids) for sequence in sequences)
    known: PrefixCache[_Sequence] = PrefixCache(total)
    ahead = set()
    for k in sorted(range(len(sequences)), key=lambda k: -len(sequences[k].ids)):
        ids = sequences[k].ids
        if known.common(ids) < max(SHARED, len(ids) / 2):
            ahead.add(k)
            known.add(sequences[k])
    return ahead


def _parameters(path: Path) -> int:
    """The number of weights in the checkpoint, by the headers of its files."""
    count = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            shapes = (tensors.get_slice(name).get_shape() for name in tensors.keys())  # noqa: SIM118
            count += sum(math.prod(shape) for shape in shapes)
    return count
