"""What a kill leaves of DVC's own files is removed, and what is sound stays."""

import pytest

from pipeline.engine.checkout import mend


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("text", "stays"), [("", False), ('{"read": {"data', False), ('{"read": {}}', True)])
def test_a_lock_that_was_cut_short_goes(checkout, text, stays):
    lock = checkout / ".dvc/tmp/rwlock"
    lock.write_text(text)
    mend()
    assert lock.exists() is stays


def test_empty_folders_in_the_cache_of_runs_go(checkout):
    runs = checkout / ".dvc/cache/runs"
    for name in ("aa/aa1", "bb/bb1", "cc"):
        (runs / name).mkdir(parents=True)
    (runs / "bb/bb1/entry").touch()
    mend()
    assert sorted(path.relative_to(runs).as_posix() for path in runs.rglob("*")) == ["bb", "bb/bb1", "bb/bb1/entry"]


def test_where_dvc_never_ran_there_is_nothing_to_mend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mend()
    assert list(tmp_path.iterdir()) == []
