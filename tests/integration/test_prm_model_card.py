"""What a PRM process says of its checkpoints, refuses, and how it serves several as one."""

from __future__ import annotations

import statistics

import httpx
import orjson
import pytest

from agentprm.client import PRMClient, ServiceError
from agentprm.config import PRMSettings
from agentprm.ensembles import write_ensemble
from agentprm.facts import METADATA
from agentprm.prompts import load_prompt
from agentprm.registry import Registry
from services.trainer.fits.prm import fit_prm
from services.trainer.targets.monte_carlo import monte_carlo_targets
from tests.scorers import tiny_scorer
from tests.servers import prm_server
from tests.unit.trainer_episodes import create_small, episode

EPISODES = [
    episode(commands, rewards, game=game, index=i)
    for i, (game, commands, rewards) in enumerate(
        (game, commands, rewards)
        for game in "abcdef"
        for commands, rewards in ((["look", "go to cabinet 1"], [0, 1]), (["inventory"], [0]))
    )
]
CHAT = [
    {"role": "user", "content": "you are in the middle of a room ."},
    {"role": "assistant", "content": "REASON: find mug\nACTION: go to shelf 1"},
    {"role": "user", "content": "nothing happens ."},
    {"role": "assistant", "content": "REASON: find mug\nACTION: take mug 2"},
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """prm/0 is fitted, prm/1 to prm/3 come from elsewhere, prm/4 is of `state`, prm/5 1 to 3."""
    root = tmp_path_factory.mktemp("run")
    registry = Registry(root / "checkpoints")
    targets = monte_carlo_targets(EPISODES, 0.8)
    settings = PRMSettings(epochs=1, batch_tokens=600, validation_fraction=0.34)
    with registry.write("prm/0") as draft:
        fit_prm(
            create_small(root),
            EPISODES,
            targets,
            draft,
            settings,
            load_prompt("chat"),
            seed=0,
            split_seed=0,
            gamma=0.8,
        )
    for k in (1, 2, 3, 4):
        with registry.write(f"prm/{k}") as draft:
            tiny_scorer(draft, seed=k)
            if k == 4:
                facts = {"template_hash": load_prompt("state").hash}
                (draft / METADATA).write_bytes(orjson.dumps(facts))
    write_ensemble(registry, "prm/5", ["prm/1", "prm/2", "prm/3"])
    write_ensemble(registry, "prm/6", ["prm/1", "prm/4"])
    return registry


def test_cards_refusals_and_ensembles(registry: Registry) -> None:
    with prm_server(registry) as (_, url), PRMClient(url, deadline=30) as prm:
        empty = httpx.get(f"{url}/v1/model")
        assert empty.status_code == 503

        prm.load("prm/0")
        card = prm.model()
        [checkpoint] = card.checkpoints
        assert (card.version, checkpoint.version) == ("prm/0", "prm/0")
        assert checkpoint.template_hash == card.template_hash == load_prompt("chat").hash
        assert checkpoint.gamma == 0.8
        assert checkpoint.data is not None
        assert (checkpoint.data.training.games, checkpoint.data.validation.games) == (4, 2)
        assert checkpoint.calibration is not None
        table = checkpoint.calibration
        assert sum(b.turns for b in table.bins) == table.turns == 6

        with pytest.raises(ServiceError, match="--prompt state") as refused:
            prm.load("prm/4")
        assert refused.value.status == 409
        with pytest.raises(ServiceError, match="prm/4 was fitted with") as refused:
            prm.load("prm/6")
        assert refused.value.status == 409
        assert prm.health().version == "prm/0"

        q = []
        for version in ("prm/1", "prm/2", "prm/3"):
            prm.load(version)
            alone = httpx.post(f"{url}/v1/score", json={"messages": CHAT}).json()
            assert alone["spread"] is None
            q.append(alone["conversations"][0])
        assert prm.model().checkpoints[0].calibration is None

        prm.load("prm/5")
        answer = httpx.post(f"{url}/v1/score", json={"messages": CHAT}).json()
        assert answer["prm_version"] == "prm/5"
        for turn in (0, 1):
            of_members = [values[turn] for values in q]
            assert answer["conversations"][0][turn] == pytest.approx(
                statistics.mean(of_members), abs=1e-5
            )
            assert answer["spread"]["conversations"][0][turn] == pytest.approx(
                statistics.stdev(of_members), abs=1e-5
            )
        assert answer["spread"]["conversations"][0][0] > 1e-3
        assert [c.version for c in prm.model().checkpoints] == ["prm/1", "prm/2", "prm/3"]
        assert prm.health().details["members"] == 3
