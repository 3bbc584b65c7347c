"""Q of every turn of recorded episodes.

    python examples/score_transcript.py FILE.jsonl

Each line of the file is an OpenAI chat, {"messages": [...]}, or a record of a training run as they
are in RUN/records.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from agentprm.client import PRMClient
from agentprm.protocol import JobResult


def scored(prm: PRMClient, line: str) -> Iterator[tuple[str, list[str], list[float]]]:
    """The name, the actions and their Q of each episode in a line."""
    record = json.loads(line)
    if "messages" in record:
        answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
        yield "chat", answers, prm.score_messages(record["messages"])
        return
    episodes = JobResult.model_validate(record).episodes
    for episode, q in zip(episodes, prm.score_episodes(episodes), strict=True):
        commands = [turn.action.command for turn in episode.turns]
        yield f"{episode.game.task} ({'won' if episode.won else 'lost'})", commands, q


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--prm", default="http://127.0.0.1:8003")
    options = arguments.parse_args()
    with PRMClient(options.prm) as client, options.file.open() as lines:
        for line in lines:
            for name, actions, q in scored(client, line):
                print(name)
                for action, value in zip(actions, q, strict=True):
                    print(f"  {value:.3f}  {action!r}")
