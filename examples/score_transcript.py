"""Q of every turn of recorded episodes.

    python examples/score_transcript.py FILE.jsonl

Each line of the file is an OpenAI chat, {"messages": [...]}, or a record of a training run as they
are in RUN/records. Lines without turns, such as preferences, are passed over.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from agentprm.client import PRMClient, ServiceError
from agentprm.protocol import JobResult


def scored(prm: PRMClient, line: str) -> Iterator[tuple[str, list[str], list[float]]]:
    """The name, the actions and their Q of each episode in a line."""
    record = json.loads(line)
    if "messages" in record:
        answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
        if answers:
            yield "chat", answers, prm.score_messages(record["messages"])
        return
    episodes = JobResult.model_validate(record).episodes
    if not episodes:
        return
    for episode, q in zip(episodes, prm.score_episodes(episodes), strict=True):
        commands = [turn.action.command for turn in episode.turns]
        yield f"{episode.game.task} ({'won' if episode.won else 'lost'})", commands, q


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--prm", default="http://127.0.0.1:8003")
    options = arguments.parse_args()
    try:
        lines = options.file.read_bytes().split(b"\n")  # a text may hold other line ends
    except OSError as error:
        sys.exit(str(error))
    with PRMClient(options.prm) as client:
        for number, line in enumerate(lines, 1):
            try:
                found = list(scored(client, line)) if line.strip() else []
            except (ValueError, LookupError, TypeError, ServiceError) as error:
                sys.exit(f"{options.file}:{number}: {error}")
            for name, actions, q in found:
                print(name)
                for action, value in zip(actions, q, strict=True):
                    print(f"  {value:.3f}  {action!r}")
