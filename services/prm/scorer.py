"""Q(s, a) from a one-label sequence classifier.

Q(s, a) = sigmoid(logit), the logit being the score head at the last token of the action: what
transformers computes for the conversation that ends with it. A causal model knows that number
for every turn of an episode after one forward pass, and for many actions in one state after one
pass over the state: the actions lie one after the other behind it in a single row, and the
attention mask lets each see the state and itself, never its neighbours. Such a row takes two
passes, the state and then its actions on the state's keys and values: the first is plain causal
attention, and only the second, short one needs a mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from agentprm.encoding import encode, encode_answers
from agentprm.prompts import Prompt
from agentprm.protocol import Action, Choice, Message, ScoreRequest, State, Step, Transcript
from agentprm.registry import CheckpointError
from agentprm.service import ProblemError
from agentprm.weights import copy_from_file, require_all
from services.prm.packing import Row, additive, batches, fork_row, pad, tree_mask

PACKED_TOKENS = 2048
"""Most tokens of actions behind one state: their mask takes this times the length of the row."""
FORWARD_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Most tokens computed at once, padding included. A CPU is slower on more, and a short request
waits for the pass before it."""

_SEEN = Step(
    observation="You are in the middle of a room.",
    action=Action(reason="find mug", command="look"),
)
_NEXT = Action(reason="find mug", command="go to shelf 1")
CANARY = ScoreRequest(
    transcripts=[
        Transcript(
            task="put a mug in cabinet",
            steps=[_SEEN, Step(observation="You see nothing.", action=_NEXT)],
        )
    ],
    choices=[
        Choice(
            state=State(
                task="put a mug in cabinet", history=(_SEEN,), observation="You see nothing."
            ),
            actions=[_SEEN.action, _NEXT],
        )
    ],
)
"""An episode, and two actions in its last state; the second is the one it took."""
CANARY_TOLERANCE = 0.05
"""Largest difference between the ways to score that action; reduced precision needs some."""


@dataclass
class Plan:
    """The rows of a request, and for each number of its answer the row and the place in it."""

    rows: list[Row] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    choices: list[list[tuple[int, int]]] = field(default_factory=list)
    transcripts: list[list[tuple[int, int]]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return sum(map(len, self.rows))


_Asked = tuple[dict[str, tuple[int, int]], list[str]]
"""Where the actions of a state are to be found, by text, and the texts that were asked for."""


class Scorer:
    """A PRM checkpoint on a device, with the prompt that renders states for it."""

    def __init__(
        self, path: Path, prompt: Prompt, *, device: str = "auto", dtype: str = "auto"
    ) -> None:
        """Load the Hugging Face directory `path`.

        Raises:
            CheckpointError: it is not a complete one-label classifier on a causal model.
            OSError, ValueError: transformers cannot read it.
        """
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        if config.num_labels != 1:
            raise CheckpointError(
                f"{path} has {config.num_labels} labels; a PRM is a sequence classifier with one"
            )
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        require_all(path, info, unused=["lm_head."])
        if not hasattr(model, "score"):
            raise CheckpointError(
                f"{path} is a {type(model).__name__}, which does not score at the last token"
            )
        self.prompt = prompt
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.device = torch.device(pick_device(device))
        model = model.to(self.device).eval()
        copy_from_file(model)
        self._head: Any = model.score
        self._body: Any = model.base_model
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.parameters = sum(p.numel() for p in model.parameters())
        text = config.get_text_config()
        self.max_tokens: int | None = getattr(text, "max_position_embeddings", None)
        self.forward_tokens = FORWARD_TOKENS.get(self.device.type, FORWARD_TOKENS["cuda"])
        self._packs = _takes_trees(self._body, text)
        if len(self.tokenizer) > text.vocab_size:
            raise CheckpointError(
                f"{path}: the tokenizer knows {len(self.tokenizer)} tokens, "
                f"the model {text.vocab_size}"
            )

    def plan(self, request: ScoreRequest) -> Plan:
        """Rows for a request. Equal states share a row, equal actions in them a branch.

        Raises:
            ProblemError: 422, something is longer than the model can read.
        """
        plan = Plan()
        forks: dict[tuple[Message, ...], dict[str, tuple[int, int]]] = {}

        def ask(state: State, actions: Iterable[Action]) -> _Asked:
            places = forks.setdefault(tuple(self.prompt.messages(state)), {})
            texts = [self.prompt.action_text(action) for action in actions]
            places.update(dict.fromkeys(texts, (0, 0)))
            return places, texts

        pairs = [ask(pair.state, [pair.action]) for pair in request.pairs]
        choices = [ask(choice.state, choice.actions) for choice in request.choices]
        episodes: list[list[_Asked]] = []
        for k, transcript in enumerate(request.transcripts):
            if self.prompt.append_only:
                row = self._transcript(transcript, f"transcripts.{k}")
                plan.transcripts.append([(len(plan.rows), t) for t in range(len(row.ends))])
                plan.rows.append(row)
            else:
                episodes.append([ask(state, [action]) for state, action in _turns(transcript)])
        for messages, places in forks.items():
            for texts, row in self._fork(messages, list(places)):
                places.update({text: (len(plan.rows), k) for k, text in enumerate(texts)})
                plan.rows.append(row)
        plan.pairs = [places[text] for places, (text,) in pairs]
        plan.choices = [[places[text] for text in texts] for places, texts in choices]
        plan.transcripts += [[places[text] for places, (text,) in turns] for turns in episodes]
        return plan

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Q at the ends of each row. Independent of what else is in the batch."""
        scores: list[list[float]] = [[] for _ in rows]
        for batch in batches(rows, self.forward_tokens):
            for k, values in zip(batch, self._forward([rows[k] for k in batch]), strict=True):
                scores[k] = values
        return scores

    def check(self) -> None:
        """Try the weights on `CANARY`.

        Raises:
            CheckpointError: a score is not finite, or an action scores otherwise when packed.
            ValueError: the tokenizer's chat template does not take the conversation.
        """
        plan = self.plan(CANARY)
        scores = self.score(plan.rows)
        if not all(0.0 <= q <= 1.0 for row in scores for q in row):
            raise CheckpointError(f"the scores of a short episode are not finite: {scores}")
        alone, packed = (scores[row][k] for row, k in (plan.transcripts[0][1], plan.choices[0][1]))
        if abs(alone - packed) > CANARY_TOLERANCE:
            raise CheckpointError(
                f"the model scores an action {alone} at the end of an episode and {packed} beside "
                "another action: it does not keep to the attention mask it is given"
            )

    def _transcript(self, transcript: Transcript, name: str) -> Row:
        messages = self.prompt.transcript(transcript.task, transcript.steps)
        encoded = encode(self.tokenizer, messages)
        self._fits(len(encoded.ids), name)
        return Row(encoded.ids, [end - 1 for _, end in encoded.spans], trunk=len(encoded.ids))

    def _fork(
        self, messages: Sequence[Message], texts: Sequence[str]
    ) -> Iterator[tuple[list[str], Row]]:
        """The actions of one state, as many in a row as `PACKED_TOKENS` allows."""
        trunk, branches = encode_answers(self.tokenizer, messages, texts)
        self._fits(len(trunk) + max(map(len, branches)), "a state with an action")
        limit = PACKED_TOKENS if self._packs else 0
        group: list[int] = []
        tokens = 0
        for k, ids in enumerate(branches):
            if group and tokens + len(ids) > limit:
                yield [texts[j] for j in group], fork_row(trunk, [branches[j] for j in group])
                group, tokens = [], 0
            group.append(k)
            tokens += len(ids)
        yield [texts[j] for j in group], fork_row(trunk, [branches[j] for j in group])

    def _fits(self, tokens: int, what: str) -> None:
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise ProblemError(
                422, "Too long", f"{what} is {tokens} tokens, the model reads {self.max_tokens}"
            )

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Row]) -> list[list[float]]:
        # Padding is on the right: a causal model never looks at what follows a token, and counts
        # positions from 0 by itself, so that a plain row needs neither a mask nor positions.
        packed = bool(rows[0].branches)
        trunks = pad([row.ids[: row.trunk] for row in rows]).to(self.device)
        output = self._body(input_ids=trunks, use_cache=packed)
        skipped = [0] * len(rows)
        if packed:
            tails = pad([row.ids[row.trunk :] for row in rows]).to(self.device)
            mask, positions = tree_mask(rows, trunks.shape[1], tails.shape[1])
            output = self._body(
                input_ids=tails,
                attention_mask=additive(mask.to(self.device), self._body.dtype),
                position_ids=positions.to(self.device),
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            skipped = [row.trunk for row in rows]
        where = [k for k, row in enumerate(rows) for _ in row.ends]
        ends = [end - skip for row, skip in zip(rows, skipped, strict=True) for end in row.ends]
        logits = self._head(output.last_hidden_state[where, ends])
        scores = iter(torch.sigmoid(logits.float()).flatten().tolist())
        return [[next(scores) for _ in row.ends] for row in rows]


def pick_device(name: str) -> str:
    """`auto` is a GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _turns(transcript: Transcript) -> Iterator[tuple[State, Action]]:
    steps = tuple(transcript.steps)
    for t, step in enumerate(steps):
        state = State(task=transcript.task, history=steps[:t], observation=step.observation)
        yield state, step.action


def _takes_trees(body: Any, config: Any) -> bool:
    """Whether the model attends by a mask and by positions that it is given, over its full length.

    Where it does not (a sliding window, a recurrent layer, ALiBi), actions are scored row by row.
    """
    layers: Iterable[str] = getattr(config, "layer_types", None) or ()
    return (
        bool(getattr(body, "_supports_attention_backend", False))
        and "position_ids" in inspect.signature(body.forward).parameters
        and all(layer == "full_attention" for layer in layers)
        and getattr(config, "sliding_window", None) is None
    )
