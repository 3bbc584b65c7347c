"""How actions are made of a policy's answers: free text, or draws from the admissible commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentprm.prompts import PromptTemplate, parse_action
from agentprm.protocol import (
    MAX_TEXT,
    Action,
    ActResult,
    Candidate,
    Decoding,
    Message,
    Sampling,
    State,
)
from services.policy.engine import Draw, Engine, Prompt, Question, Score
from services.policy.engine.sampling import draw_index, generator


@dataclass(frozen=True)
class Query:
    """A state to act in. `key` is (seed, index), on which its samples depend."""

    state: State
    key: tuple[int, int]
    hint: str = ""


@dataclass(frozen=True)
class _Frame:
    """The literal parts of an action's text: before REASON's content, between, behind ACTION's."""

    head: str
    middle: str
    tail: str

    @classmethod
    def of(cls, template: PromptTemplate) -> _Frame:
        """Taken from a rendered probe.

        Raises:
            ValueError: the template does not render the reason, then the command, verbatim.
        """
        text = template.action_text(Action(reason="<reason>", command="<command>"))
        head, found_reason, rest = text.partition("<reason>")
        middle, found_command, tail = rest.partition("<command>")
        if not found_reason or not found_command or not middle.strip():
            raise ValueError("the prompt template's output is not a reason, then a command")
        return cls(head, middle, tail)


class Decoder:
    """Candidate actions from an engine's answers, for one prompt template.

    Raises:
        ValueError: the template does not render the reason, then the command, verbatim.
    """

    def __init__(self, template: PromptTemplate) -> None:
        self.template = template
        self._frame = _Frame.of(template)

    def act(
        self, engine: Engine, queries: Sequence[Query], n: int, sampling: Sampling
    ) -> list[ActResult]:
        """`n` samples in each state, equal actions merged; the first drawn is the chosen.

        Where a state lists no admissible commands, the text is decoded freely.

        Raises:
            ProblemError: as `Engine.generate` and `Engine.score`.
        """
        results: list[ActResult | None] = [None] * len(queries)
        restricted = [
            sampling.decoding is Decoding.ADMISSIBLE and any(query.state.admissible)
            for query in queries
        ]
        for way, decode in ((True, self._admissible), (False, self._free)):
            numbers = [k for k, flag in enumerate(restricted) if flag is way]
            if numbers:
                found = decode(engine, [queries[k] for k in numbers], n, sampling)
                for k, candidates in zip(numbers, found, strict=True):
                    results[k] = ActResult(candidates=candidates, chosen=0)
        return [result for result in results if result is not None]

    def _free(
        self, engine: Engine, queries: Sequence[Query], n: int, sampling: Sampling
    ) -> list[list[Candidate]]:
        prompts = [Prompt(tuple(self.template.messages(q.state, q.hint)), q.key) for q in queries]
        draw = Draw(n, sampling.temperature, sampling.max_tokens)
        found = []
        for samples in engine.generate(prompts, draw):
            candidates = []
            for sample in samples:
                action, well_formed = parse_action(sample.text)
                candidates.append(
                    Candidate(
                        text=sample.text,
                        action=action,
                        log_prob=sum(sample.log_probs),
                        tokens=len(sample.ids),
                        well_formed=well_formed,
                    )
                )
            found.append(_merged(candidates))
        return found

    def _admissible(
        self, engine: Engine, queries: Sequence[Query], n: int, sampling: Sampling
    ) -> list[list[Candidate]]:
        """REASON token by token up to the end of its line, then a command as a whole.

        The action's text is then encoded as training encodes it, and every command scored behind
        every distinct reason. So what is scored does not depend on how the reason was tokenised
        when it was sampled.
        """
        messages = [tuple(self.template.messages(query.state, query.hint)) for query in queries]
        reasons = self._reasons(engine, messages, queries, n, sampling)
        commands = [[c for c in dict.fromkeys(q.state.admissible) if c] for q in queries]
        asked = zip(messages, reasons, commands, strict=True)
        scores = engine.score([self._question(*each) for each in asked])
        return [
            self._drawn(*each, sampling)
            for each in zip(queries, reasons, commands, scores, strict=True)
        ]

    def _reasons(
        self,
        engine: Engine,
        messages: Sequence[tuple[Message, ...]],
        queries: Sequence[Query],
        n: int,
        sampling: Sampling,
    ) -> list[list[str]]:
        """The content of `n` sampled REASON lines of each query."""
        prompts = [
            Prompt(conversation, query.key, opening=self._frame.head)
            for conversation, query in zip(messages, queries, strict=True)
        ]
        stop = ("\n", self._frame.middle.strip())
        temperature = sampling.reason_temperature
        if temperature is None:
            temperature = sampling.temperature
        sampled = engine.generate(prompts, Draw(n, temperature, sampling.max_tokens, stop))
        return [[sample.text.strip()[:MAX_TEXT] for sample in samples] for samples in sampled]

    def _question(
        self, conversation: tuple[Message, ...], reasons: Sequence[str], commands: Sequence[str]
    ) -> Question:
        """How probable is each command behind each distinct reason, those of a reason in a row?"""
        frame = self._frame
        openings = [f"{frame.head}{reason}{frame.middle}" for reason in dict.fromkeys(reasons)]
        answers = [(opening, f"{c}{frame.tail}") for opening in openings for c in commands]
        return Question(conversation, tuple(answers))

    def _drawn(
        self,
        query: Query,
        reasons: Sequence[str],
        commands: Sequence[str],
        scores: Sequence[Score],
        sampling: Sampling,
    ) -> list[Candidate]:
        """A command behind each reason, drawn by `scores`, the answers to `_question`."""
        frame, many = self._frame, len(commands)
        of_reason = {
            reason: scores[k * many : (k + 1) * many]
            for k, reason in enumerate(dict.fromkeys(reasons))
        }
        done = {(step.action.reason, step.action.command) for step in query.state.history}
        candidates = []
        for reason, at in zip(reasons, generator(query.key, 1).random(len(reasons)), strict=True):
            row = of_reason[reason]
            weights = [
                score.log_prob - sampling.presence_penalty * ((reason, command) in done)
                for score, command in zip(row, commands, strict=True)
            ]
            chosen = draw_index(weights, sampling.temperature, at)
            command = commands[chosen]
            candidates.append(
                Candidate(
                    text=f"{frame.head}{reason}{frame.middle}{command}{frame.tail}",
                    action=Action(reason=reason, command=command),
                    log_prob=_log_prob(row, chosen),
                    tokens=len(row[chosen].ids),
                )
            )
        return _merged(candidates)


def _log_prob(scores: Sequence[Score], chosen: int) -> float:
    """Of REASON, plus that of the command among the admissible ones."""
    totals = np.array([score.log_prob for score in scores])
    among = totals[chosen] - np.logaddexp.reduce(totals)
    return float(scores[chosen].opening_log_prob + among)


def _merged(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Equal actions as one candidate with their count, in order of first appearance."""
    distinct: dict[tuple[Action, bool], Candidate] = {}
    for candidate in candidates:
        key = (candidate.action, candidate.well_formed)
        first = distinct.get(key)
        distinct[key] = (
            candidate if first is None else first.model_copy(update={"count": first.count + 1})
        )
    return list(distinct.values())
