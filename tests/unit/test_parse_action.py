"""REASON and ACTION of a text, whatever the text."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from agentprm.prompts import parse_action
from agentprm.protocol import Action

HOSTILE = """
from agentprm.prompts import parse_action
for filler in ("\\n", " ", "\\n ", "\\nACTION", "REASON:"):
    for before in ("", "\\n"):
        action, well_formed = parse_action(before + "REASON:" + filler * 20_000)
        assert not well_formed
print("done")
"""


@pytest.mark.parametrize(
    ("text", "reason", "command"),
    [
        ("REASON: find mug\nACTION: look", "find mug", "look"),
        ("\n REASON:\n find mug\n\nACTION:\n look \n", "find mug", "look"),
        ("REASON:\nACTION: look", "", "look"),
        ("REASON: a\nb\nACTION: look\nACTION: wait", "a\nb", "look"),
        ("REASON: then ACTION: no\nACTION:\n\n\tlook", "then ACTION: no", "look"),
    ],
)
def test_reason_and_command_follow_their_marks(text: str, reason: str, command: str) -> None:
    assert parse_action(text) == (Action(reason=reason, command=command), True)


def test_it_is_what_lines_say() -> None:
    """Against a reading line by line, on texts of the pieces that matter."""
    rng = random.Random(0)
    pieces = ["REASON:", "ACTION:", " ", "\n", "\t", "a", "look", "\n\n", " b "]
    well_formed = 0
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        expected = _by_lines(text)
        action, good = parse_action(text)
        assert (action.reason, action.command) == expected[:2]
        assert good == expected[2]
        well_formed += good
    assert well_formed > 100


def _by_lines(text: str) -> tuple[str, str, bool]:
    bare = text.lstrip()
    if bare.startswith("REASON:"):
        rest = bare[len("REASON:") :]
        lines = rest.split("\n")
        for k in range(1, len(lines)):
            if lines[k].startswith("ACTION:"):
                behind = "\n".join(lines[k:])[len("ACTION:") :].lstrip()
                command = behind.split("\n")[0].strip()
                if command:
                    return "\n".join(lines[:k]).strip(), command, True
                break
    return text.strip(), "", False


def test_a_text_full_of_white_space_holds_nobody_up() -> None:
    """In another process: where it takes cubic time, it does so in days and without the lock."""
    command = [sys.executable, "-c", HOSTILE]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "done\n"
