"""How fast the engines act.

A Llama of 0.9 million random parameters plays `states` conversations side by side for `turns`
turns: each turn an observation of 25 tokens, a REASON of `reason-tokens` tokens, and a
command drawn from `commands` admissible ones. Random weights say nothing sensible, but they cost
what trained ones do.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers.utils.logging import disable_progress_bar

from agentprm.models.replicas import Replicas
from agentprm.models.serving import Serving
from agentprm.prompts import load_prompt
from agentprm.protocol import Sampling, State, Step
from agentprm.registry import Registry
from agentprm.service import configure_logging
from benchmarks.conditions import conditions_now
from services.policy.decoding import Decoder, Query
from services.policy.engine import Engine, Question
from services.policy.engine.embedded import EmbeddedEngine
from services.policy.engine.sglang import SGLangEngine
from tests.models import tiny_causal_lm

PLACES = ["cabinet", "drawer", "desk", "table", "fridge", "microwave"]
CACHE_GIB = 1.5


app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

Commands = Annotated[int, typer.Option(help="admissible ones of a state")]
ReasonTokens = Annotated[int, typer.Option(help="of an action")]
Threads = Annotated[int, typer.Option(help="of torch")]


@app.callback(help=__doc__)
def prepare() -> None:
    configure_logging("benchmark")
    disable_progress_bar()


@app.command()
def embedded(
    states: Annotated[int, typer.Option(help="conversations side by side")] = 64,
    turns: Annotated[int, typer.Option(help="of a conversation")] = 12,
    n: Annotated[int, typer.Option(help="samples of a state")] = 1,
    commands: Commands = 30,
    reason_tokens: ReasonTokens = 6,
    threads: Threads = 1,
    device: str = "cpu",
    dtype: str = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """The embedded engine, with and without what it keeps between turns."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as directory:
        model = save(Path(directory) / "model")

        def load(cache_gib: float) -> EmbeddedEngine:
            return load_embedded(model, device, dtype, cache_gib)

        sampling = Sampling(max_tokens=reason_tokens)
        cached = play(load(CACHE_GIB), states, turns, n, commands, sampling)
        uncached = play(load(0), states, turns, n, commands, sampling)
        result = {
            "conditions": {
                "states": states,
                "turns": turns,
                "n": n,
                "commands": commands,
                "reason_tokens": reason_tokens,
                "parameters": sum(p.numel() for p in load(CACHE_GIB).model.parameters()),
                "device": device,
                "dtype": dtype,
                "threads": threads,
                **conditions_now(),
                "torch": torch.__version__,
            },
            "cached_turns": cached,
            "no_cache": uncached,
            "scoring": scoring(load(CACHE_GIB), states, turns, commands),
            "swap_seconds": swap(model, Path(directory) / "registry", device, dtype),
        }
    typer.echo(json.dumps(result, indent=None if as_json else 2))


@app.command()
def sglang(
    urls: Annotated[
        list[str], typer.Argument(help="SGLang servers of the model that `save` writes")
    ],
    commands: Commands = 30,
    reason_tokens: ReasonTokens = 6,
    threads: Threads = 1,
    device: str = "cpu",
    dtype: str = "auto",
) -> None:
    """SGLang beside the embedded engine, in the same run."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as directory:
        model = save(Path(directory) / "model")
        engines: dict[str, Engine] = {
            "embedded": load_embedded(model, device, dtype, CACHE_GIB),
            "sglang": on_sglang(model, urls),
        }
        sampling = Sampling(max_tokens=reason_tokens)
        found = {
            name: {f"n={n}": act(engine, n, commands, sampling) for n in (1, 16)}
            for name, engine in engines.items()
        }
    typer.echo(json.dumps({"conditions": conditions_now(), **found}))


@app.command()
def save(path: Annotated[Path, typer.Argument(help="directory to write it to")]) -> Path:
    """Write the model, to start SGLang servers on."""
    return tiny_causal_lm(path, 0, size=128, layers=4, max_position_embeddings=2048)


def load_embedded(model: Path, device: str, dtype: str, cache_gib: float) -> EmbeddedEngine:
    return EmbeddedEngine.load(
        model, device=device, dtype=dtype, cache_bytes=int(cache_gib * 2**30)
    )


def on_sglang(model: Path, urls: list[str]) -> SGLangEngine:
    """The model on the servers, all of them."""
    replicas = Replicas(urls)
    engine = SGLangEngine.load(model, replicas)
    replicas.compare(engine)
    replicas.put(engine)
    return engine


def act(engine: Engine, n: int, commands: int, sampling: Sampling) -> dict[str, float]:
    """The second turn of episodes: one after the other, and 8 side by side."""
    decoder = Decoder(load_prompt("chat"))
    rng = random.Random(n)

    def turns(count: int) -> list[State]:
        """Second turns, whose first ones were acted in."""
        firsts = [
            State(task="put mug in cabinet", observation=room(rng), admissible=("look",))
            for _ in range(count)
        ]
        found = decoder.act(engine, [Query(s, (0, k)) for k, s in enumerate(firsts)], 1, sampling)
        return [
            State(
                task=first.task,
                history=(Step(observation=first.observation, action=result.best.action),),
                observation=room(rng),
                admissible=admissible(rng, commands),
            )
            for first, result in zip(firsts, found, strict=True)
        ]

    seconds = []
    for k, state in enumerate(turns(9)):
        started = time.perf_counter()
        decoder.act(engine, [Query(state, (1, k))], n, sampling)
        seconds.append(time.perf_counter() - started)
    together = turns(8)
    started = time.perf_counter()
    decoder.act(engine, [Query(s, (2, k)) for k, s in enumerate(together)], n, sampling)
    elapsed = time.perf_counter() - started
    return {
        "p50_milliseconds": round(1000 * statistics.median(seconds)),
        "states_per_second": round(len(together) / elapsed, 1),
        "samples_per_second": round(n * len(together) / elapsed, 1),
    }


def play(
    engine: Engine, states: int, turns: int, n: int, commands: int, sampling: Sampling
) -> dict[str, float]:
    """Episodes side by side: agent tokens and states a second."""
    decoder = Decoder(load_prompt("chat"))
    rng = random.Random(0)
    playing = [State(task="put mug in cabinet", observation=room(rng)) for _ in range(states)]
    tokens = samples = 0
    elapsed = busy = 0.0
    for turn in range(turns):
        playing = [s.model_copy(update={"admissible": admissible(rng, commands)}) for s in playing]
        queries = [Query(state, (turn, k)) for k, state in enumerate(playing)]
        started, used = time.perf_counter(), time.process_time()
        results = decoder.act(engine, queries, n, sampling)
        elapsed += time.perf_counter() - started
        busy += time.process_time() - used
        for k, result in enumerate(results):
            tokens += sum(c.tokens * c.count for c in result.candidates)
            samples += n
            step = Step(observation=playing[k].observation, action=result.best.action)
            playing[k] = playing[k].model_copy(
                update={"history": (*playing[k].history, step), "observation": room(rng)}
            )
    return {
        "agent_tokens_per_second": round(tokens / elapsed),
        "agent_tokens_per_cpu_second": round(tokens / busy),
        "states_per_second": round(states * turns / elapsed, 1),
        "milliseconds_per_turn": round(1000 * elapsed / turns),
        "tokens_per_action": round(tokens / samples, 1),
    }


def scoring(engine: Engine, states: int, turns: int, commands: int) -> dict[str, float]:
    """All commands of a state in one packed row, against one forward pass for each command."""
    template = load_prompt("chat")
    questions = []
    rng = random.Random(1)
    for _ in range(states):
        action = {"reason": "find mug", "command": "go to cabinet 1"}
        history = [{"observation": room(rng), "action": action} for _ in range(turns // 2)]
        state = State.model_validate({"task": "", "history": history, "observation": room(rng)})
        answers = [("REASON: find mug\nACTION:", f" {c}") for c in admissible(rng, commands)]
        questions.append(Question(tuple(template.messages(state)), tuple(answers)))
    engine.score(questions)  # tokenised once, for both
    started = time.perf_counter()
    engine.score(questions)
    packed = time.perf_counter() - started
    started = time.perf_counter()
    for k in range(commands):
        engine.score([Question(q.messages, q.answers[k : k + 1]) for q in questions])
    single = time.perf_counter() - started
    return {
        "packed_commands_per_second": round(states * commands / packed),
        "one_pass_each_commands_per_second": round(states * commands / single),
    }


def swap(model: Path, root: Path, device: str, dtype: str) -> dict[str, float]:
    """Verifying, loading and trying a checkpoint, and the pause that requests see."""
    registry = Registry(root)
    registry.adopt(model, "policy/0")

    def build(path: Path) -> Engine:
        return EmbeddedEngine.load(path, device=device, dtype=dtype, cache_bytes=0)

    serving = Serving("policy", registry, build, lambda engine, _: engine.check())
    loaded = [asyncio.run(serving.load("policy/0")) for _ in range(3)][-1]
    return {"load": round(loaded.load_seconds, 4), "pause": round(loaded.pause_seconds, 6)}


def room(rng: random.Random) -> str:
    """An observation."""
    return "You are in the middle of a room. You see a " + ", a ".join(things(rng, 3)) + "."


def admissible(rng: random.Random, count: int) -> tuple[str, ...]:
    """Distinct commands as ALFWorld words them."""
    found = dict.fromkeys(f"go to {thing}" for thing in things(rng, 2 * count // 3))
    while len(found) < count:
        found[f"take mug {rng.randint(1, 20)} from {next(things(rng, 1))}"] = None
    return tuple(found)


def things(rng: random.Random, count: int) -> Iterator[str]:
    """Places with numbers."""
    return (f"{rng.choice(PLACES)} {rng.randint(1, 20)}" for _ in range(count))


if __name__ == "__main__":
    app()
