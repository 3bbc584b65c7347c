"""A ReAct agent on any OpenAI-compatible model, steered by the PRM, plays a game.

Start the environment, a policy and the PRM with `agentprm up --run RUN --games DIR`, then

    pip install openai
    python examples/react_agent.py

or give the address and name of another model: --llm https://api.openai.com/v1 --model gpt-5-mini.

`best_answer` is all that an agent of your own needs: sample, score, take the best.
"""

import argparse
import os
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from agentprm.client import EnvClient, PRMClient
from agentprm.prompts import load_prompt, parse_action
from agentprm.protocol import CreateSessions, Split, State, Step, StepSession, StepSessions

Chat = list[ChatCompletionMessageParam]


def best_answer(llm: OpenAI, model: str, prm: PRMClient, messages: Chat, n: int) -> tuple[str, str]:
    """Of n answers to a conversation the one that the PRM likes best, and what it thought."""
    sampled = llm.chat.completions.create(model=model, messages=messages, n=n, temperature=1.0)
    answers = list(dict.fromkeys(choice.message.content or "" for choice in sampled.choices))
    q = prm.score_answers(messages, answers)
    best = max(range(len(answers)), key=lambda k: q[k])
    return answers[best], f"Q {q[best]:.3f}, the best of {', '.join(f'{x:.3f}' for x in q)}"


def play(options: argparse.Namespace) -> None:
    """One game, a turn a line."""
    llm = OpenAI(base_url=options.llm, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    prompt = load_prompt(options.prompt)
    with PRMClient(options.prm) as prm, EnvClient(options.env) as env:
        request = CreateSessions(
            split=Split(options.split), seed=options.seed, max_steps=options.max_steps
        )
        [session] = env.create(request)
        try:
            task, history = session.game.task, list[Step]()
            print(task)
            while not session.done:
                seen, commands = session.observation, session.admissible
                state = State(task=task, history=history, observation=seen, admissible=commands)
                messages: list[Any] = [message.model_dump() for message in prompt.messages(state)]
                answer, thought = best_answer(llm, options.model, prm, messages, options.n)
                action, _ = parse_action(answer)
                print(f"[{session.turn}] {action.command or '(no command)'} - {thought}")
                history.append(Step(observation=seen, action=action))
                step = StepSession(id=session.id, turn=session.turn, command=action.command)
                [result] = env.step(StepSessions(steps=[step]))
                if result.session is None:
                    raise RuntimeError(str(result.problem))
                session = result.session
            print("won" if session.won else "lost", "after", session.turn, "turns")
        finally:
            env.close_sessions([session.id])


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--env", default="http://127.0.0.1:8001")
    arguments.add_argument("--llm", default="http://127.0.0.1:8002/v1")
    arguments.add_argument("--model", default="policy")
    arguments.add_argument("--prm", default="http://127.0.0.1:8003")
    arguments.add_argument(
        "--prompt",
        default="chat",
        help="the run's, as its PRM was trained to see an episode: chat, state, or a template file",
    )
    arguments.add_argument("--n", type=int, default=8)
    arguments.add_argument("--split", default="valid_seen")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--max-steps", type=int, default=30)
    play(arguments.parse_args())
