"""What a training run is made of: typed settings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from agentprm.addresses import service_url
from agentprm.config._algorithm import Algorithm
from agentprm.config._exploration import Exploration
from agentprm.config._fits import DPOSettings, OnlineSettings, PRMSettings, SFTSettings
from agentprm.config._monitor import MonitorSettings
from agentprm.config._settings import Settings
from agentprm.config._shaping import Shaping
from agentprm.config._stages import Demonstrations, Evaluation, Preferences, Rollouts
from agentprm.config._updates import GRPOSettings, PolicyUpdate, RejectionSettings
from agentprm.protocol import MAX_ACTION_TOKENS, MAX_BATCH, MAX_POOL, MAX_STEPS

_ACCELERATE = Path(__file__).parents[1] / "accelerate"


class PolicyEngine(StrEnum):
    """What runs the policy's model."""

    EMBEDDED = "embedded"
    """transformers, in the policy service's process."""
    SGLANG = "sglang"
    """SGLang servers."""


class Scratch(Settings):
    """The shape of a Llama that is made from scratch, with embeddings tied."""

    width: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    """They share the width evenly."""
    feed_forward: int = Field(default=384, ge=8)

    @model_validator(mode="after")
    def _heads_are_of_an_even_size(self) -> Scratch:
        if self.width % (2 * self.heads):
            raise ValueError(f"{self.heads} heads do not share a width of {self.width} evenly")
        return self


class Config(Settings):
    """A training run."""

    preset: str
    """Where these settings come from."""
    algorithm: Algorithm = Algorithm.AGENT_PRM
    """`agent-prm` (Q from outcomes), `inverse-prm` (from demonstrations), or a baseline."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """What was set in place of the preset's own values, by dotted names."""
    seed: int = 0
    """All sampling, shuffling and initialisation derives from it."""
    model: str = "tiny"
    """`tiny` makes a model from scratch; else a Hugging Face directory or hub id."""
    scratch: Scratch = Scratch()
    """How large `tiny` is."""
    prompt: str = "chat"
    """`chat`, `state`, or the path of a template."""
    engine: Literal["compiled", "textworld"] = "compiled"
    """The environment's engine; `textworld` is the reference."""
    expert: Literal["search", "handcoded"] = "search"
    """The environment's expert; `handcoded` is alfworld's own and needs the engine `textworld`."""
    policy_engine: PolicyEngine = PolicyEngine.EMBEDDED
    """What samples actions; `sglang` needs `sglang_urls`."""
    sglang_urls: tuple[Annotated[str, AfterValidator(service_url)], ...] = ()
    """SGLang servers, started on a checkpoint of the model's configuration and tokenizer."""
    device: str = "auto"
    """Where models run: auto, cpu, cuda, cuda:1, ... A fit in one process takes one GPU."""
    policy_device: str | None = None
    prm_device: str | None = None
    """Where policy and PRM are served, if not on `device`: fits want a GPU for themselves."""
    num_processes: int = Field(default=1, ge=1)
    """Processes that share a fit, each on a GPU of its own, or on the CPU (`device`). They change
    its time, not its result: batches are of all processes together. (A step of online DPO or GRPO
    has as many of `batch_pairs` or `batch_groups` as go round.)"""
    accelerate: str = "ddp"
    """How they share it: `ddp`, `fsdp`, or the path of a file of `accelerate config`."""
    workers: int = Field(default=2, ge=1)
    """Rollout workers that `agentprm train` starts."""
    policy_replicas: int = Field(default=1, ge=1)
    """Policy services that `agentprm train` starts. On a CPU each computes on a core of its own;
    every worker asks one of them."""
    batch: int = Field(default=8, ge=1, le=MAX_BATCH)
    """Episodes of one job; a worker plays them side by side."""
    max_steps: int = Field(default=30, ge=1, le=MAX_STEPS)
    """The horizon T: the most turns of an episode."""
    gamma: float = Field(default=0.95, gt=0, le=1)
    """γ: the discount of eq. 1, of V^μ and A^μ, and of the reward of InversePRM."""
    iterations: int = Field(default=3, ge=1)
    """K: how often the loop rolls out, fits Q and improves π."""
    demonstrations: Demonstrations
    rollouts: Rollouts
    preferences: Preferences
    evaluation: Evaluation = Evaluation()
    sft: SFTSettings = SFTSettings()
    prm: PRMSettings = PRMSettings()
    shaping: Shaping = Shaping()
    dpo: DPOSettings = DPOSettings()
    update: PolicyUpdate = PolicyUpdate.ONLINE_DPO
    """How the policy is improved."""
    grpo: GRPOSettings = GRPOSettings()
    rejection: RejectionSettings = RejectionSettings()
    monitor: MonitorSettings | None = None
    """Watch stage 3 for reward hacking, where it is given."""

    @property
    def has_prm(self) -> bool:
        """Whether there is a Q: neither a baseline fits one, nor fine-tuning on what was won."""
        baseline = self.algorithm in (Algorithm.SFT, Algorithm.DAGGER)
        return not baseline and self.update is not PolicyUpdate.OUTCOME_REJECTION

    @property
    def online(self) -> OnlineSettings | None:
        """The settings of the policy update, where it is one that publishes weights on its way."""
        if self.update is PolicyUpdate.ONLINE_DPO:
            return self.dpo
        return self.grpo if self.update is PolicyUpdate.GRPO else None

    @model_validator(mode="after")
    def _the_expert_plays_on_its_engine(self) -> Config:
        if self.expert == "handcoded" and self.engine != "textworld":
            raise ValueError('expert = "handcoded" needs engine = "textworld"')
        return self

    @model_validator(mode="after")
    def _textworld_plays_all_games_at_once(self) -> Config:
        games = self.workers * self.batch
        if self.engine == "textworld" and games > MAX_POOL:
            raise ValueError(
                f"workers x batch are {games} games at once, each a process of TextWorld, of which "
                f"there are at most {MAX_POOL}"
            )
        return self

    @model_validator(mode="after")
    def _sglang_has_servers(self) -> Config:
        if (self.policy_engine is PolicyEngine.SGLANG) != bool(self.sglang_urls):
            raise ValueError('policy_engine = "sglang" and sglang_urls belong together')
        return self

    @model_validator(mode="after")
    def _the_monitor_has_held_out_games(self) -> Config:
        if self.monitor is not None and self.prm.validation_fraction == 0:
            raise ValueError("monitor: prm.validation_fraction = 0 holds out no games to look at")
        return self

    @model_validator(mode="after")
    def _a_state_fits_into_a_batch(self) -> Config:
        vine = self.rollouts.vine
        if vine is not None and vine.size > self.batch:
            raise ValueError(
                f"rollouts.vine: {vine.actions + vine.random} actions x {vine.continuations} "
                f"continuations are more than the batch of {self.batch}"
            )
        return self

    @model_validator(mode="after")
    def _one_request_asks_for_all_of_a_job(self) -> Config:
        asked, best = self.preferences, self.evaluation.best_of_sampling
        of_a_job = {
            "preferences: states_per_job x candidates x sampling.max_tokens": (
                asked.states_per_job * asked.candidates * asked.sampling.max_tokens
            ),
            "batch x evaluation.best_of x evaluation.best_of_sampling.max_tokens": (
                self.batch * self.evaluation.best_of * best.max_tokens
            ),
        }
        for name, tokens in of_a_job.items():
            if tokens > MAX_ACTION_TOKENS:
                raise ValueError(f"{name} is {tokens} tokens, at most {MAX_ACTION_TOKENS}")
        return self

    @model_validator(mode="after")
    def _the_monitor_has_something_to_watch(self) -> Config:
        if self.monitor is None:
            return self
        fit = self.online
        if fit is None:
            raise ValueError(f'monitor: update = "{self.update}" publishes no weights to look at')
        if self.monitor.games and fit.publish_every >= fit.max_steps:
            raise ValueError(
                f"monitor.games: weights are published every {fit.publish_every} steps of "
                f"{fit.max_steps}, so no fit could be ended in time; lower publish_every"
            )
        return self

    @model_validator(mode="after")
    def _inverse_prm_reads_no_outcome(self) -> Config:
        reading = {
            "shaping.alpha": self.shaping.alpha > 0,
            'prm.objective = "relative"': self.prm.objective == "relative",
            'update = "outcome-rejection"': self.update is PolicyUpdate.OUTCOME_REJECTION,
            "rollouts.exploration.reset": self.rollouts.exploration.reset is not None,
            "rollouts.exploration.posterior": self.rollouts.exploration.posterior is not None,
        }
        given = [name for name, present in reading.items() if present]
        if self.algorithm is Algorithm.INVERSE_PRM and given:
            raise ValueError(f"{given[0]} needs outcomes, which inverse-prm does not read")
        return self

    @model_validator(mode="after")
    def _outcome_rejection_imitates_the_policy(self) -> Config:
        if self.update is not PolicyUpdate.OUTCOME_REJECTION:
            return self
        if self.shaping.alpha > 0:
            raise ValueError(f'shaping.alpha has no meaning with update = "{self.update}"')
        if self.rollouts.exploration.posterior is not None:
            raise ValueError(
                f'rollouts.exploration.posterior: update = "{self.update}" would imitate what the '
                "explorer chose, which knew where things are"
            )
        return self

    @model_validator(mode="after")
    def _baselines_have_no_prm(self) -> Config:
        exploration = self.rollouts.exploration
        meant_for_a_prm = {
            "shaping.alpha": self.shaping.alpha > 0,
            "monitor": self.monitor is not None,
            "update": self.update is not PolicyUpdate.ONLINE_DPO,
            "rollouts.exploration": exploration != Exploration(),
        }
        given = [name for name, present in meant_for_a_prm.items() if present]
        if self.algorithm in (Algorithm.SFT, Algorithm.DAGGER) and given:
            raise ValueError(f"{given[0]} has no meaning with {self.algorithm}")
        return self


def accelerate_file(name: str) -> Path:
    """The file that `Config.accelerate` names.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml", ".json")) else _ACCELERATE / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"no accelerate settings {name!r}: give ddp, fsdp or a .yaml file")
    return path
