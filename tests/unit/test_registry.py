import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import orjson
import pytest

from agentprm.registry import STABLE, CheckpointError, NoCheckpointError, Registry, number
from tests.synced import synced

VERSION = "policy/1"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "checkpoints")


def write(registry: Registry, version: str = VERSION, weights: bytes = b"weights") -> Path:
    with registry.write(version) as draft:
        (draft / "model.safetensors").write_bytes(weights)
        (draft / "extra").mkdir()
        (draft / "extra" / "config.json").write_text("{}")
    return registry.path(version)


def test_a_checkpoint_is_there_when_it_is_complete(registry: Registry) -> None:
    with registry.write(VERSION) as draft:
        (draft / "config.json").write_text("{}")
        assert not registry.exists(VERSION)
        assert registry.versions("policy") == []
        with pytest.raises(NoCheckpointError, match="no checkpoint policy/1"):
            registry.open(VERSION)
    assert registry.open(VERSION) == registry.root / VERSION
    assert [p.name for p in (registry.root / "policy").iterdir()] == ["1"]


def test_services_of_another_user_may_read_a_checkpoint(registry: Registry) -> None:
    assert stat.S_IMODE(write(registry).stat().st_mode) == 0o755


def test_a_checkpoint_is_on_the_disk_before_it_is_marked(registry: Registry) -> None:
    with synced() as paths:
        path = write(registry)
    *before, named, mark, marked = paths
    assert {file.name for file in before} >= {"model.safetensors", "config.json", "extra"}
    assert all(".draft-" in str(file) for file in before)
    assert mark.name.startswith(f".{STABLE}")
    assert (named, marked) == (path.parent, path)


def test_a_checkpoint_is_immutable(registry: Registry) -> None:
    path = write(registry)
    before = (path / STABLE).read_bytes()
    with pytest.raises(CheckpointError, match="immutable"):
        write(registry, weights=b"other")
    assert (path / STABLE).read_bytes() == before
    assert registry.open(VERSION) == path


def test_of_two_writers_at_once_one_wins(registry: Registry) -> None:
    ready = threading.Barrier(8)
    refused: list[CheckpointError] = []

    def attempt(k: int) -> None:
        try:
            with registry.write(VERSION) as draft:
                (draft / "model.safetensors").write_bytes(bytes([k]) * 1000)
                ready.wait(10)
        except CheckpointError as error:
            refused.append(error)

    threads = [threading.Thread(target=attempt, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert registry.open(VERSION)
    assert [p.name for p in (registry.root / "policy").iterdir()] == ["1"]


def test_a_block_that_fails_leaves_nothing(registry: Registry) -> None:
    def fail() -> None:
        with registry.write(VERSION) as draft:
            (draft / "model.safetensors").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list((registry.root / "policy").iterdir()) == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "extra/scheduler.pkl"])
def test_pickles_are_refused(registry: Registry, name: str) -> None:
    def attempt() -> None:
        with registry.write(VERSION) as draft:
            (draft / "extra").mkdir()
            (draft / name).write_bytes(b"\x80")

    with pytest.raises(CheckpointError, match="is a pickle"):
        attempt()
    assert not registry.exists(VERSION)


def test_damage_is_named(registry: Registry) -> None:
    path = write(registry)
    (path / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors differs"):
        registry.open(VERSION)
    (path / "model.safetensors").write_bytes(b"weights")
    registry.open(VERSION)

    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json was added"):
        registry.open(VERSION)
    (path / "tokenizer.json").unlink()

    (path / "extra" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"extra/config\.json is missing"):
        registry.open(VERSION)


@pytest.mark.parametrize("mark", [b"", b"{", b"[]", b'"policy/1"'])
def test_a_damaged_mark_is_named(registry: Registry, mark: bytes) -> None:
    path = write(registry)
    (path / STABLE).write_bytes(mark)
    with pytest.raises(CheckpointError, match="STABLE is damaged"):
        registry.open(VERSION)


def test_an_unmarked_checkpoint_is_refused(registry: Registry) -> None:
    path = write(registry)
    (path / STABLE).unlink()
    assert not registry.exists(VERSION)
    with pytest.raises(CheckpointError, match="has no STABLE mark"):
        registry.open(VERSION)


@pytest.mark.parametrize(
    "version",
    ["", "policy", "policy/", "../1", "policy/../1", "/policy/1", "policy/1/..", "policy/1\n",
     "prm/1.2.3", "other/1", "policy/-1", "policy/.draft-x", "policy/\u0661"],
)  # fmt: skip
def test_no_version_leads_out_of_the_root(registry: Registry, version: str) -> None:
    for call in (registry.path, registry.open, registry.exists, registry.remove):
        with pytest.raises(NoCheckpointError, match="is not a checkpoint version"):
            call(version)
    with pytest.raises(CheckpointError), registry.write(version):
        pass


def test_a_mark_cannot_name_a_file_outside(registry: Registry) -> None:
    path = write(registry)
    outside = registry.root / "secret"
    outside.write_bytes(b"")
    mark = orjson.loads((path / STABLE).read_bytes())
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (path / STABLE).write_bytes(orjson.dumps({**mark, "../../secret": [0, empty]}))
    with pytest.raises(CheckpointError, match="secret is missing"):
        registry.open(VERSION)


KILLED = """
import os, signal, sys
from pathlib import Path
from agentprm import registry
registry.write_atomic = lambda path, content: os.kill(os.getpid(), signal.SIGKILL)
with registry.Registry(Path(sys.argv[1])).write("policy/1") as draft:
    (draft / "model.safetensors").write_bytes(b"half known")
"""


def test_a_crash_between_rename_and_mark_leaves_nothing_to_load(registry: Registry) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(registry.root)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        timeout=60,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    assert registry.path(VERSION).is_dir()
    assert registry.versions("policy") == []
    with pytest.raises(CheckpointError, match="has no STABLE mark"):
        registry.open(VERSION)

    write(registry)
    assert (registry.open(VERSION) / "model.safetensors").read_bytes() == b"weights"


_WRITES = """
import sys, time
from pathlib import Path
from agentprm.registry import Registry
with Registry(Path(sys.argv[1])).write("policy/1") as draft:
    (draft / "model.safetensors").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_draft_is_removed_once_its_writer_was_killed(registry: Registry) -> None:
    argv = [sys.executable, "-c", _WRITES, str(registry.root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        registry.drop_drafts()
        assert [path.name[:7] for path in (registry.root / "policy").iterdir()] == [".draft-"]
        writer.kill()
    registry.drop_drafts()
    assert list((registry.root / "policy").iterdir()) == []


def test_versions_come_in_the_order_of_their_numbers(registry: Registry) -> None:
    for version in ("online/1.10", "online/1.9", "online/2.1", "policy/10", "policy/9"):
        write(registry, version)
    (registry.root / "online" / ".draft-x").mkdir()
    (registry.root / "online" / ".draft-x" / STABLE).write_text("{}")
    assert registry.versions("online") == ["online/1.9", "online/1.10", "online/2.1"]
    assert registry.versions("policy") == ["policy/9", "policy/10"]
    assert registry.versions("prm") == []
    assert number("online/1.10") == (1, 10)


def test_what_serves_is_remembered(registry: Registry) -> None:
    assert registry.serving("prm") is None
    registry.set_serving("prm", "prm/0")
    registry.set_serving("prm", "prm/1")
    assert registry.serving("prm") == "prm/1"
    assert [p.name for p in registry.root.iterdir()] == ["serving-prm"]


def test_adopt_copies_a_hugging_face_directory(registry: Registry, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        registry.adopt(source, VERSION)
    config = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
    (source / "config.json").write_text(config)
    (source / STABLE).write_text("not a mark of ours")
    registry.adopt(source, VERSION)
    assert (registry.open(VERSION) / "config.json").read_text() == config


def test_what_trainers_leave_beside_the_weights_is_not_adopted(
    registry: Registry, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    (source / ".cache").mkdir(parents=True)
    for name in ("model.safetensors", "training_args.bin", "optimizer.pt", ".hidden", ".cache/x"):
        (source / name).touch()
    (source / "config.json").write_text(_config("LlamaForCausalLM"))
    registry.adopt(source, VERSION)
    found = {path.name for path in registry.open(VERSION).rglob("*")}
    assert found == {STABLE, "config.json", "model.safetensors"}


def test_a_damaged_checkpoint_is_not_shared(registry: Registry, tmp_path: Path) -> None:
    (write(registry) / "model.safetensors").write_bytes(b"Weights")
    other = Registry(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"model\.safetensors differs"):
        other.share(VERSION, registry)
    assert not other.exists(VERSION)


def _config(architecture: str) -> str:
    return orjson.dumps({"model_type": "any", "architectures": [architecture]}).decode()


@pytest.mark.parametrize(
    ("config", "version", "reason"),
    [
        (_config("LlamaForSequenceClassification"), "policy/1", "is no policy: it is a Llama"),
        (_config("LlamaForCausalLM"), "prm/0", "is no PRM: it is a LlamaForCausalLM"),
        (_config("GPT2LMHeadModel"), "value/0", "is no PRM"),
        ('{"preset": "tiny"}', "policy/1", "names no model_type"),
        ("[", "policy/1", "names no model_type"),
    ],
)
def test_a_model_of_another_kind_is_not_adopted(
    registry: Registry, tmp_path: Path, config: str, version: str, reason: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=reason):
        registry.adopt(tmp_path, version)
    assert not registry.exists(version)


def test_a_removed_checkpoint_is_gone(registry: Registry) -> None:
    write(registry)
    registry.remove(VERSION)
    with pytest.raises(NoCheckpointError):
        registry.open(VERSION)
    write(registry)
    assert registry.exists(VERSION)


def test_of_what_is_half_removed_the_mark_is_gone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(registry)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before it
    registry.remove(VERSION)
    assert path.is_dir()
    assert not registry.exists(VERSION)
