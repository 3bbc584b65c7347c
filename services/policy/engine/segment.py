"""New tokens of a conversation as a segment of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from agentprm.models import segments


@dataclass(eq=False)
class Segment(segments.Segment):
    """`tokens` at `positions`, behind the first `start` columns of `store`.

    All of them see the first `trunk` columns, the conversation. Of the columns behind it, known
    and new, a token sees what `tree` [tokens, columns behind the trunk] says; without a tree all
    that lie before it. `between` are the positions of the known ones.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    trunk: int
    tree: npt.NDArray[np.bool_] | None = None
    between: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def chain(self) -> bool:
        """Whether it is a conversation that goes on: no branches."""
        return self.tree is None

    def sees(self) -> torch.Tensor:
        """Behind the trunk what the tree says."""
        return torch.from_numpy(self.tree)

    def seen(self) -> npt.NDArray[np.bool_]:
        """[tokens, columns]: whether the token sees the column."""
        width = self.start + len(self)
        if self.tree is None:
            return np.tri(len(self), width, self.start, dtype=np.bool_)
        seen = np.ones((len(self), width), dtype=np.bool_)
        seen[:, self.trunk :] = self.tree
        return seen

    def near(self, window: int) -> npt.NDArray[np.bool_]:
        """[tokens, columns]: whether the column is in a window that ends with the token."""
        at = np.array(self.column_positions())
        near: npt.NDArray[np.bool_] = at[self.start :, None] - at < window
        return near

    def column_positions(self) -> list[int]:
        """Those of the trunk are their numbers."""
        return [*range(self.trunk), *self.between, *self.positions]
