"""Two policies on the same games from the same seeds: what only one of them won."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Paired:
    """The games that one of two policies won and the other did not; only these can tell them apart.

    Were both as good, each of these n games would be gained or lost with equal probability, so the
    number lost is Binomial(n, 1/2): McNemar's test, exact.
    """

    gained: int
    lost: int

    @property
    def p_lost(self) -> float:
        """P(at least as many lost as were), one-sided."""
        return _tail(self.lost, self.gained + self.lost)

    @property
    def p(self) -> float:
        """P(a difference at least as large, either way), two-sided."""
        return min(1.0, 2 * _tail(max(self.gained, self.lost), self.gained + self.lost))


def paired(before: Iterable[bool], after: Iterable[bool]) -> Paired:
    """Which games were won, in the same order.

    Raises:
        ValueError: they are not as many.
    """
    outcomes = list(zip(before, after, strict=True))
    return Paired(gained=outcomes.count((False, True)), lost=outcomes.count((True, False)))


def _tail(k: int, n: int) -> float:
    ways: int = sum(comb(n, j) for j in range(k, n + 1))
    p: float = ways / 2**n  # of integers, however large
    return p
