"""Train a policy with TRL's GRPO against a PRM that runs elsewhere.

python examples/trl_reward.py --prm http://127.0.0.1:8003 --model Qwen/Qwen2.5-0.5B-Instruct
"""

import argparse

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from agentprm.integrations.trl import PRMReward

STATES = [
    "You are in the middle of a room. You see a cabinet 1, a drawer 1 and a shelf 1.\n\n"
    "Your task is to: put some mug in shelf.",
    "You arrive at cabinet 1. The cabinet 1 is closed.\n\nYour task is to: find some apple.",
]

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--prm", default="http://127.0.0.1:8003")
arguments.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct")
arguments.add_argument("--steps", type=int, default=100)
arguments.add_argument("--output", default="grpo")
options = arguments.parse_args()

trainer = GRPOTrainer(
    model=options.model,
    reward_funcs=PRMReward(options.prm),
    args=GRPOConfig(
        output_dir=options.output,
        max_steps=options.steps,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=32,
        logging_steps=1,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    ),
    train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": s}]} for s in STATES]),
)
trainer.train()
print("mean Q by step:", [row["reward"] for row in trainer.state.log_history if "reward" in row])
