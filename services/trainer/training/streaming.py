"""What the online fits share: samples that arrive while they train, and weights handed out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from services.trainer.training.canaries import MakeCanary
from services.trainer.training.fitting import Metrics, processes, throughput
from services.trainer.training.saving import Save, gather_weights
from services.trainer.training.trainers import mean_loss

S = TypeVar("S")
R = TypeVar("R")

Publish = Callable[[Save, int], None]
"""Takes what writes the weights of now to a directory, and the optimizer step they are of."""


class NoSamplesError(ValueError):
    """There was nothing, or not enough for one step, to train on."""


class Stream(IterableDataset[list[R]], Generic[S, R]):
    """Samples as batches of rows, read when an optimizer step is due.

    What a step reads is sorted by length, so that little is padding, and cut into one batch for
    each accumulated pass, which the processes share. Only the main one reads `samples`.

    Args:
        samples: come one by one, and may have to be waited for.
        encode: the row of a sample, None where it is too long.
        length: the tokens of a row.
        rows: rows of a step, over all processes; as many of them as go round evenly.
        own_batches: batches that one process computes for a step.
        reuse: how many steps there are on the same rows.
    """

    def __init__(
        self,
        samples: Iterable[S],
        encode: Callable[[S], R | None],
        length: Callable[[R], int],
        *,
        rows: int,
        own_batches: int,
        reuse: int = 1,
    ) -> None:
        state = processes()
        self.used = self.too_long = self.left_over = self.tokens = 0
        """Rows trained on, samples that were too long, rows too few to go round, and tokens."""
        self._own_batches = own_batches
        self.reuse = reuse
        self._world, self._rank = state.num_processes, state.process_index
        self._parts = own_batches * self._world
        self._step = max(rows // self._parts, 1) * self._parts
        self._encode = encode
        self._length = length
        self._rows = self._encoded(samples)

    def first(self) -> R:
        """The first row, which stays in the stream.

        Raises:
            NoSamplesError: there is none.
        """
        head = self._together(lambda: list(itertools.islice(self._rows, 1)))
        if not head:
            raise NoSamplesError("no sample came, or none was short enough")
        self._rows = itertools.chain(head, self._rows)
        return head[0]

    def __iter__(self) -> Iterator[list[R]]:
        while rows := self._together(lambda: list(itertools.islice(self._rows, self._step))):
            usable = len(rows) // self._parts * self._parts  # the last may be too few to go round
            self.left_over += len(rows) - usable
            rows = sorted(rows[:usable], key=self._length)
            self.used += usable
            self.tokens += self.reuse * sum(map(self._length, rows))
            size = usable // self._own_batches
            for _ in range(self.reuse):
                for start in range(0, usable, max(size, 1)):
                    yield rows[start : start + size][self._rank :: self._world]

    def loader(self, collate: Callable[[list[R]], Any]) -> DataLoader[Any]:
        """The stream, batch by batch. Not by way of accelerate, which reads one batch ahead."""
        return DataLoader(self, batch_size=None, collate_fn=collate)

    def _together(self, read: Callable[[], list[R]]) -> list[R]:
        """What the main process reads, in every process."""
        if self._world == 1:
            return read()
        box = [read() if self._rank == 0 else []]
        rows: list[R] = broadcast_object_list(box)[0]
        return rows

    def _encoded(self, samples: Iterable[S]) -> Iterator[R]:
        for sample in samples:
            row = self._encode(sample)
            if row is None:
                self.too_long += 1
            else:
                yield row


class Publisher(TrainerCallback):
    """Hands out the weights every few steps."""

    def __init__(
        self, trainer: Trainer, publish: Publish, every: int, make_canary: MakeCanary
    ) -> None:
        self._trainer = trainer
        self._publish = publish
        self._every = every
        self._make_canary = make_canary

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """One optimizer step is done."""
        if state.global_step % self._every:
            return
        save = gather_weights(self._trainer, self._trainer.processing_class, self._make_canary)
        if state.is_world_process_zero:
            self._publish(save, state.global_step)
        self._trainer.accelerator.wait_for_everyone()


def train_on(stream: Stream[Any, Any], trainer: Trainer, what: str, last: Sequence[str]) -> Metrics:
    """Train until the stream ends, or the steps are done; what was measured.

    Args:
        what: names the samples.
        last: what is taken from the last logged line that has all of it, if one has.

    Raises:
        NoSamplesError: too few samples came.
    """
    result = trainer.train()
    if result.global_step == 0:
        raise NoSamplesError(f"{stream.used} {what} are too few for one step")
    lines = [line for line in trainer.state.log_history if set(last) <= line.keys()]
    return {
        "loss": mean_loss(trainer, result.training_loss),
        "steps": float(result.global_step),
        what: float(stream.used),
        "too_long": float(stream.too_long),
        "left_over": float(stream.left_over),
        **{name: float(line[name]) for line in lines[-1:] for name in last},
        **throughput(stream.tokens, result.metrics["train_runtime"]),
    }
