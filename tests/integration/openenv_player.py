"""Plays commands through OpenEnv's own generic client; runs in an environment that has `openenv`.

python openenv_player.py URL GAME COMMAND... prints what the client returned, a JSON object a line.
"""

import json
import sys
from typing import Any

from openenv import GenericEnvClient


def show(answer: Any) -> None:
    told = {"observation": answer.observation, "reward": answer.reward, "done": answer.done}
    print(json.dumps(told))


url, game, *commands = sys.argv[1:]
with GenericEnvClient(base_url=url).sync() as env:
    show(env.reset(game=game, episode_id="mine"))
    for command in commands:
        show(env.step({"command": command}))
    print(json.dumps(env.state()))
