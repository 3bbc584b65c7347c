import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agentprm.files import drop_drafts, fresh_draft, is_locked, locked, new_draft


def test_a_draft_goes_with_its_block_and_those_of_killed_processes_before(tmp_path: Path) -> None:
    (tmp_path / ".draft-killed").mkdir()
    with fresh_draft(tmp_path) as one:
        (one / "file").touch()
        with fresh_draft(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([one, other])
            (other / "whole").mkdir()
            (other / "whole").rename(tmp_path / "whole")
        assert (one / "file").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_lock_is_of_a_directory_or_of_a_file_that_stays(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    for path in (tmp_path, file):
        with locked(path):
            assert is_locked(path)
        assert not is_locked(path)
    assert file.is_file()


def test_a_draft_that_is_made_just_now_is_not_taken_for_one_of_a_killed_process(
    tmp_path: Path,
) -> None:
    """Its name is there a moment before its lock."""
    stopped = threading.Event()

    def drop() -> None:
        while not stopped.is_set():
            drop_drafts(tmp_path)

    with ThreadPoolExecutor(2) as pool:
        dropping = [pool.submit(drop) for _ in range(2)]
        for _ in range(500):
            with new_draft(tmp_path) as draft:
                assert draft.is_dir()
        stopped.set()
        for each in dropping:
            each.result()
