"""A file is the old one or the new one, never half of either, and nothing temporary stays behind."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.files import _HOST, atomic_folder, atomic_path, read_json, sha256_of, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    with atomic_path(path) as partial:
        partial.write_bytes(b"half")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_bytes() == b"half"
    assert listing(path.parent) == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail():
        with atomic_path(path) as partial:
            partial.write_text("new, but cut sh")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path):
    folder = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic_folder(folder) as partial:
            (partial / name).write_text(name)
    assert listing(folder) == ["second"]
    assert listing(tmp_path) == ["folder"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_an_error_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")

    def fail():
        with atomic_folder(folder) as partial:
            (partial / "new").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert listing(folder) == ["old"]
    assert listing(tmp_path) == ["folder"]


@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, writer):
    pid = os.fork()
    if pid == 0:
        with writer(tmp_path / "a"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(listing(tmp_path)) == 1
    with writer(tmp_path / "a") as partial:
        assert listing(tmp_path) == [partial.name]
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_what_several_killed_processes_left_is_removed_but_not_what_one_works_on(tmp_path, writer):
    for number in range(3):
        left = tmp_path / f".a.{_HOST}.{number}.partial"
        if writer is atomic_folder:
            left.mkdir()
            (left / "half").write_text("half")
        else:
            left.write_text("half")
    with writer(tmp_path / "a") as first:
        assert listing(tmp_path) == [first.name]
        assert not any(first.iterdir()) if first.is_dir() else first.read_bytes() == b""
        with writer(tmp_path / "a") as second:
            assert listing(tmp_path) == sorted([first.name, second.name])
            assert first != second
    assert listing(tmp_path) == ["a"]


def test_writing_does_not_list_the_folder(tmp_path, monkeypatch):
    # With 60,000 results in it that took a tenth of a second for each further one.
    def refuse(*arguments):
        raise AssertionError("listed")

    for name in ("os.scandir", "os.listdir", "pathlib.Path.iterdir", "pathlib.Path.glob"):
        monkeypatch.setattr(name, refuse)
    write_text(tmp_path / "a", "text")
    monkeypatch.undo()
    assert listing(tmp_path) == ["a"]


def test_a_second_writer_of_a_folder_does_not_take_what_the_first_puts_aside(tmp_path, monkeypatch):
    folder, replace, seen = tmp_path / "a", Path.replace, []

    def begin_another(self, target):
        done = replace(self, target)
        if self == folder and not seen:  # the old folder has just been put aside
            with atomic_folder(tmp_path / "a") as other:
                seen.append(other)
                (other / "second").write_text("second")
        return done

    with atomic_folder(folder) as partial:
        (partial / "old").write_text("old")
    monkeypatch.setattr(Path, "replace", begin_another)
    with pytest.raises(OSError, match="not empty"), atomic_folder(folder) as partial:
        (partial / "first").write_text("first")
    monkeypatch.undo()
    assert listing(folder) == ["second"]
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_what_is_of_another_kind_or_cannot_be_emptied_is_left_alone(tmp_path, writer):
    odd = tmp_path / f".a.{_HOST}.0.partial"
    if writer is atomic_path:
        odd.mkdir()
    else:
        odd.write_text("odd")
    with writer(tmp_path / "a") as partial:
        assert partial != odd
    assert listing(tmp_path) == [odd.name, "a"]


def test_a_link_that_a_killed_process_left_is_removed_and_what_it_leads_to_is_not(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_text("kept")
    left = tmp_path / f".a.{_HOST}.0.partial"
    left.mkdir()
    (left / "link").symlink_to(tmp_path / "far")
    with atomic_folder(tmp_path / "a") as partial:
        assert listing(partial) == []
    assert listing(tmp_path / "far") == ["file"]


@pytest.mark.parametrize("has_locks", [True, False])
def test_two_writers_of_one_file_leave_each_other_alone(tmp_path, monkeypatch, has_locks):
    def refuse(handle, kind):
        raise OSError(errno.ENOLCK, "no locks")

    if not has_locks:
        monkeypatch.setattr("fcntl.flock", refuse)
    path = tmp_path / "a"
    with atomic_path(path) as first:
        first.write_text("first")
        with atomic_path(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_a_disk_that_takes_no_more_is_named_with_the_cure(tmp_path, writer, number):
    def fail():
        with writer(tmp_path / "a"):
            raise OSError(number, "no")

    with pytest.raises(InputError, match=r"/a: cannot be written \(.*make room"):
        fail()
    assert listing(tmp_path) == []


def test_a_folder_that_takes_no_file_is_named_also_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(path, *options):
        raise PermissionError(errno.EACCES, "no", str(tmp_path / path))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(InputError, match="out/a: cannot be written"):
        write_text(Path("out/a"), "text")


def test_an_input_that_may_not_be_read_is_not_taken_for_the_output(tmp_path):
    def fail():
        with atomic_path(tmp_path / "out" / "a"):
            raise PermissionError(errno.EACCES, "no", "/elsewhere/input")

    with pytest.raises(PermissionError, match="input"):
        fail()


def test_a_file_in_the_way_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(OSError, match="File exists"):
        write_text(tmp_path / "a" / "b", "text")


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "é\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\nb\n"


def test_json_can_be_read_back_and_holds_no_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"score": 0.1, "none": None})
    assert read_json(path) == json.loads(path.read_text()) == {"score": 0.1, "none": None}
    assert path.read_text().endswith("}\n")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"score": float("nan")})
    assert json.loads(path.read_text()) == {"score": 0.1, "none": None}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b"9" * 5000, b'{"a": 1} {}'])
def test_what_is_no_json_object_is_refused_with_the_cure(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: .*`dvc repro` writes it again"):
        read_json(tmp_path / "a.json")


def test_a_json_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.json: cannot be read as JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("module", ["pipeline", "pipeline.stages"])
def test_a_system_without_locks_is_told_at_once(module):
    """Windows has no fcntl; a stage is not to get as far as a traceback there."""
    code = f"import sys, runpy; sys.modules['fcntl'] = None; runpy.run_module('{module}', run_name='__main__')"
    command = [sys.executable, "-c", code, "describe" if module == "pipeline" else "folds"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: this runs on Linux and macOS; on Windows, run it in WSL, https://learn.microsoft.com/windows/wsl\n"
    )


def test_digest_of_a_known_text(tmp_path):
    """The first example of FIPS 180-2, appendix B.1."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
