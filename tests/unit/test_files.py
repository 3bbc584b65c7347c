from pathlib import Path

from agentprm.files import fresh_draft, is_locked, locked


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
