"""What is wrong with a game file, said with the file's name."""

from __future__ import annotations


class Malformed(ValueError):
    """A part of a game file that this engine cannot play, before the file's name is known."""


class GameFileError(ValueError):
    """A game file that cannot be played: truncated, foreign, or of an unknown generation."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem
