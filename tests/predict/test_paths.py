"""What `predict` is given is looked at before anything is loaded: images, results, and the folder to write to."""

import errno
import os
import shutil
import socket
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.predict.paths import MANIFEST, TABLE, check_out, check_run, choose_images, join_faults, list_images
from pipeline.predict.results import WRITERS
from tests.faults.load import lay_out_run

OUT = Path("no such folder")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return lay_out_run(tmp_path_factory.mktemp("run"), seed=0)


@pytest.fixture
def image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    return tmp_path / "a.png"


@pytest.mark.parametrize("missing", ["weights", "sizes", "trees.npz", "decoding.json"])
def test_a_folder_without_a_run_is_refused_with_the_cure(run, tmp_path, missing):
    check_run(run / "folds")
    shutil.copytree(run / "folds", tmp_path / "folds", ignore=shutil.ignore_patterns(missing))
    with pytest.raises(InputError, match=r"no trained run.*--run"):
        check_run(tmp_path / "folds")


def test_a_file_is_taken_once_whatever_it_is_called(image, monkeypatch):
    monkeypatch.chdir(image.parent)
    (image.parent / "b.tif").write_bytes(b"x")
    given = [image, Path("b.tif"), Path("a.png"), Path(f"../{image.parent.name}/a.png")]
    assert [path.resolve() for path in choose_images(given, OUT)] == [image, image.parent / "b.tif"]


def test_a_folder_for_results_among_the_images_is_passed_over(image):
    (image.parent / "results").mkdir()
    assert list_images([image, image.parent / "results"], image.parent / "results") == [image]


def test_a_folder_stands_for_the_images_in_it(image, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    for name in ("c.TIF", "b.jpg", "b.label_map.tif", "b.overlay.png", "notes.md", "d.png.txt", "._b.jpg"):
        (folder / name).write_bytes(b"x")
    (folder / "deeper.png").mkdir()
    assert list_images([image, folder], OUT) == [image, folder / "b.jpg", folder / "c.TIF"]
    with pytest.raises(InputError, match=r"deeper\.png: no PNG, JPEG or TIFF in it"):
        list_images([folder / "deeper.png"], OUT)


def test_images_and_results_may_share_a_folder(image):
    for name in (MANIFEST, TABLE, "a.overlay.png"):
        (image.parent / name).write_bytes(b"x")
    assert list_images([image.parent], image.parent) == [image]
    assert choose_images([image, image.parent / MANIFEST, image.parent / TABLE], image.parent) == [image]


def test_a_list_stands_for_the_paths_in_it(image, tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "list.txt").write_bytes(b"a.png\n\n  sub/b.tif  \r\ncaf\xe9.png\n")
    assert list_images([tmp_path / "list.txt", image], OUT) == [Path("a.png"), Path("sub/b.tif"), Path(odd), image]
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(InputError, match=r"list\.txt: no path in it; write one a line"):
        list_images([tmp_path / "list.txt"], OUT)


def test_a_pattern_stands_for_the_files_that_fit(image, tmp_path, monkeypatch):
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in ("b.png", "deep/c.png", "deep/er/d.png", "odd[1].png"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert list_images([Path("?.png")], OUT) == [Path("a.png"), Path("b.png")]
    assert list_images([tmp_path / "**/c.png"], OUT) == [tmp_path / "deep/c.png"]
    assert list_images([Path("deep*"), image], OUT) == [image]
    assert list_images([Path("odd[1].png")], OUT) == [Path("odd[1].png")], "a file of this very name"
    with pytest.raises(InputError, match=r"^x\*\.png: no file fits"):
        list_images([Path("x*.png")], OUT)


def test_two_images_of_one_name_are_refused(image):
    (image.parent / "a.tif").write_bytes(b"x")
    with pytest.raises(InputError, match=r"^a: two images of this name"):
        choose_images([image, image.parent / "a.tif"], OUT)


def test_results_are_passed_over_and_counted(image, capsys):
    results = [image.with_name(f"a{suffix}") for suffix in WRITERS]
    for path in results:
        path.write_bytes(b"x")
    assert choose_images([*results, image], OUT) == [image]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("3 of 4 files are passed over: ")
    assert all(suffix in said.err for suffix in WRITERS)
    assert said.err.count("\n") == 1
    with pytest.raises(InputError, match=r"no such folder: no image to predict but results of this"):
        choose_images(results, OUT)


def test_what_is_no_file_is_refused_with_the_cure(image, tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
    (tmp_path / "link.png").symlink_to("nowhere")
    for path, message in (
        (tmp_path, "a folder where a file should be"),
        (tmp_path / "b.png", "no such file"),
        (tmp_path / "link.png", "no such file"),
        (tmp_path / "fifo.png", "a pipe"),
        (tmp_path / "socket.png", "a socket"),
        (Path("/dev/null"), "a device"),
        (image / "b.png", "cannot be read \\(Not a directory\\)"),
        (tmp_path / ("l" * 300), "cannot be read \\(File name too long\\)"),
    ):
        with pytest.raises(InputError, match=f"^{path}: .*{message}"):
            choose_images([image, path], OUT)
    with pytest.raises(InputError, match=r"^2 of 3 paths are no images.*\n.*/b\.png: .*\n.*/fifo\.png: "):
        choose_images([tmp_path / "b.png", image, tmp_path / "fifo.png"], OUT)


def test_a_file_that_may_not_be_read_is_refused(image, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.png: cannot be read \(Permission denied\); make it readable"):
        choose_images([image], OUT)


@pytest.mark.parametrize("out", ["a.png", "a.png/out", "a.png/deep/out"])
def test_results_have_no_place_in_a_file(image, out):
    with pytest.raises(InputError, match=rf"{out}: no folder that takes results \((File exists|Not a directory)\)"):
        check_out(image.parent / out)
    assert list(image.parent.iterdir()) == [image]


def test_a_folder_that_takes_no_file_is_refused_and_not_left_behind(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"deep/out: .*\(Read-only file system\); name another by --out"):
        check_out(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_files_is_as_it_was(image):
    check_out(image.parent)  # results may lie beside the images
    check_out(image.parent / "deep" / "out")
    assert list(image.parent.iterdir()) == [image]


def test_one_fault_is_one_line_and_many_are_cut():
    assert str(join_faults(["a: odd"], "faults")) == "a: odd"
    assert str(join_faults(["a", "b"], "faults")) == "faults:\n  a\n  b"
    lines = str(join_faults([str(number) for number in range(25)], "faults")).splitlines()
    assert lines[20:] == ["  19", "  and 5 more"]
