"""Many images in shards: done once, by any number of runners, to the same tables whatever was killed on the way."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.cli import main
from pipeline.commands.command import read_share
from pipeline.commands.prediction import describe_run, split
from pipeline.errors import InputError
from pipeline.params import load_params
from pipeline.predict import shards as shards_module
from pipeline.predict.paths import MANIFEST, MARKERS, TABLE
from pipeline.predict.segment import fingerprint_run, load_segmenter
from pipeline.predict.shards import collect, cut_shards, is_done, list_faults, read_marker, run_shards
from tests.faults.load import draw_nuclei, lay_out_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return lay_out_run(tmp_path_factory.mktemp("run"), seed=0, size__object_diameter_px=0.0)


@pytest.fixture
def images(tmp_path):
    """Seven images of blobs, and a file that is none."""
    for number in range(7):
        cv2.imwrite(str(tmp_path / f"i{number}.png"), draw_nuclei(64, 64, seed=number))
    (tmp_path / "i3b.png").write_bytes(b"no image")
    return sorted(tmp_path.glob("i*.png"))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards_module, "_MOST_FILES", 3)
    monkeypatch.setattr(shards_module, "_begins_shard", lambda _: False)


class Bar:
    def __call__(self, amount):
        pass

    def expect(self, more):
        pass


def load(run):
    params = load_params(run / "params.yaml")
    return load_segmenter(describe_run(run / "folds", params))


def find(run, shards):
    housekeeping = load_params(run / "params.yaml").housekeeping
    return list(run_shards(shards, partial(load, run), housekeeping, Bar()))


def read_tables(out):
    manifest = pd.read_csv(out / MANIFEST, keep_default_na=False).drop(columns=["seconds", "file"])
    return (out / TABLE).read_bytes(), manifest.to_csv(index=False)


def test_shards_are_cut_by_the_number_of_files_and_by_their_size(images, tmp_path, small_shards, monkeypatch):
    shards = cut_shards(images, tmp_path / "out", "key")
    assert [path for shard in shards for path in shard.paths] == images
    assert [len(shard.paths) for shard in shards] == [3, 3, 2]
    monkeypatch.setattr(shards_module, "_MOST_BYTES", 1)
    assert [len(shard.paths) for shard in cut_shards(images, tmp_path, "key")] == [1] * 8
    assert cut_shards([], tmp_path, "key") == []


def test_a_file_more_leaves_most_shards_as_they_are(tmp_path):
    paths = [tmp_path / f"{number:03d}.png" for number in range(500)]
    more = sorted([*paths, tmp_path / "2505.png"])
    for path in more:
        path.write_bytes(path.name.encode())
    before, after = ({shard.marker for shard in cut_shards(files, tmp_path, "key")} for files in (paths, more))
    assert len(before) > 10
    assert len(before - after) == 1


def test_a_marker_stands_for_the_images_and_for_all_that_decides_what_is_found(images, tmp_path):
    def name(paths, key="key", out=tmp_path):
        return cut_shards(paths, out, key)[0].marker.name

    assert name(images) == name(images, out=tmp_path / "elsewhere")
    copies = tmp_path / "copies"
    shutil.copytree(tmp_path, copies)
    assert name(sorted(copies.glob("i*.png"))) == name(images)
    others = {name(images), name(images[1:]), name(images, "another")}
    images[0].write_bytes(images[1].read_bytes())
    assert len(others | {name(images)}) == 4


def test_what_is_done_is_passed_over_and_nothing_is_loaded_for_it(run, images, tmp_path, small_shards):
    shards = cut_shards(images, tmp_path / "out", "key")
    assert len(find(run, shards)) == 8
    assert list(run_shards(shards, None, None, Bar())) == []
    count, faults = collect(shards, tmp_path / "out")
    assert (count, [fault.partition(":")[0] for fault in faults]) == (8, [str(tmp_path / "i3b.png")])
    manifest = pd.read_csv(tmp_path / "out" / MANIFEST)
    assert manifest["image"].tolist() == [path.stem for path in images]
    assert manifest["status"].tolist() == ["failed" if path.stem == "i3b" else "done" for path in images]
    assert not list((tmp_path / "out" / MARKERS).glob("*.lock"))


@pytest.mark.parametrize("harm", ["marker cut", "marker of old", "result gone", "result cut", "image changed"])
def test_a_shard_that_is_not_whole_is_found_anew_and_no_other(run, images, tmp_path, small_shards, harm):
    out = tmp_path / "out"
    shards = cut_shards(images, out, "key")
    find(run, shards)
    collect(shards, out)
    wanted = read_tables(out)
    if harm == "marker cut":
        shards[1].marker.write_bytes(shards[1].marker.read_bytes()[:-9])
    elif harm == "marker of old":
        shards[1].marker.write_bytes(b"")
    elif harm == "result gone":
        (out / "i4.overlay.png").unlink()
    elif harm == "result cut":
        (out / "i4.label_map.tif").write_bytes((out / "i4.label_map.tif").read_bytes()[:10])
    else:
        cv2.imwrite(str(images[5]), cv2.imread(str(images[5])), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    shards = cut_shards(images, out, "key")
    assert [read_marker(shard) is None for shard in shards] == [False, True, False]
    with pytest.raises(InputError, match=r"out: 1 of 3 shards are not done, the first with .*i3\.png; run the same"):
        collect(shards, out)
    assert [each.name for each in find(run, shards)] == ["i3", "i3b", "i4"]
    collect(shards, out)
    assert read_tables(out) == wanted


def test_what_another_run_has_written_meanwhile_is_found_anew(run, images, tmp_path, monkeypatch):
    first, second = (cut_shards(images, tmp_path / "out", key) for key in ("first", "second"))
    find(run, first)
    wanted = (tmp_path / "out" / "i0.label_map.tif").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.predict.segment.is_noise", lambda _: True)
        find(run, second)
    assert (tmp_path / "out" / "i0.label_map.tif").read_bytes() != wanted
    assert len(find(run, first)) == 8
    assert (tmp_path / "out" / "i0.label_map.tif").read_bytes() == wanted


def test_what_failed_for_want_of_memory_is_tried_again_and_a_file_that_is_no_image_is_not(
    run, images, tmp_path, monkeypatch
):
    shards = cut_shards(images, tmp_path / "out", "key")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.predict.segment._find_nuclei", lambda *_: np.zeros(10**14))
        assert all(each.fault for each in find(run, shards))
    assert [each.is_lasting for each in read_marker(shards[0])] == [path.stem == "i3b" for path in images]
    assert not is_done(shards[0])
    assert [bool(each.fault) for each in find(run, shards)] == [path.stem == "i3b" for path in images]
    assert is_done(shards[0])


def test_shares_come_to_the_same_tables_as_one_runner(run, images, tmp_path, small_shards):
    for out, shares in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        shards = cut_shards(images, out, "key")
        for share in range(shares):
            find(run, shards[share::shares])
        collect(shards, out)
    assert read_tables(tmp_path / "one") == read_tables(tmp_path / "two")
    rows = list(csv.DictReader((tmp_path / "one" / TABLE).open()))
    assert rows[0].keys() == {"image", "label", "area_px", "row", "column"}
    own = [pd.read_csv(tmp_path / "one" / f"i{number}.nuclei.csv") for number in range(7)]
    assert [row["image"] for row in rows] == [
        f"i{number}" for number, table in enumerate(own) for _ in range(len(table))
    ]
    assert [int(row["area_px"]) for row in rows] == list(pd.concat(own)["area_px"])


def test_a_second_runner_of_a_shard_waits_and_then_finds_it_done(run, images, tmp_path):
    shards = cut_shards(images, tmp_path / "out", "key")
    first = run_shards(shards, partial(load, run), load_params(run / "params.yaml").housekeeping, Bar())
    next(first)
    found = []
    second = threading.Thread(target=lambda: found.append(find(run, cut_shards(images, tmp_path / "out", "key"))))
    second.start()
    time.sleep(0.5)
    assert found == []
    assert len(list(first)) == 7
    second.join(60)
    assert found == [[]]


def test_results_of_one_name_from_two_shards_are_refused(run, tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(shards_module, "_MOST_FILES", 1)
    cv2.imwritemulti(str(tmp_path / "a.tif"), [draw_nuclei(40, 40, seed=n) for n in range(2)])
    cv2.imwrite(str(tmp_path / "a.page001.png"), draw_nuclei(40, 40, seed=3))
    shards = cut_shards([tmp_path / "a.tif", tmp_path / "a.page001.png"], tmp_path / "out", "key")
    find(run, shards)
    with pytest.raises(
        InputError, match=r"a\.page001\.png: its results would be named a\.page001, as those of .*a\.tif"
    ):
        collect(shards, tmp_path / "out")


def test_a_name_that_is_no_text_is_in_the_tables(run, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(cv2.imencode(".png", draw_nuclei(64, 64, seed=1))[1].tobytes())
    shards = cut_shards([path], tmp_path / "out", "key")
    find(run, shards)
    assert collect(shards, tmp_path / "out") == (1, [])
    (outcome,) = read_marker(shards[0])
    assert outcome.path == path
    assert outcome.nuclei > 0
    assert "caf\\udce9,1," in (tmp_path / "out" / TABLE).read_text()


def test_faults_are_counted_and_named():
    assert str(list_faults(["b.png: no PNG"], 2)) == "b.png: no PNG"
    assert str(list_faults(["b.png: no PNG"] * 2, 3)).startswith("2 images are left out; the others of 3 files")


def test_other_networks_parameters_or_code_are_another_run(run, tmp_path, monkeypatch):
    params = load_params(run / "params.yaml")

    def digest(folds=run / "folds", select=params.select, ids=params.folds.ids):
        return fingerprint_run(describe_run(folds, params)._replace(select=select, ids=ids))

    shutil.copytree(run / "folds", tmp_path / "folds")
    digests = {digest(), digest(tmp_path / "folds")}
    assert len(digests) == 1
    digests |= {digest(select=params.select.model_copy(update={"min_worth": 0.9})), digest(ids=(0,))}
    (tmp_path / "folds" / "decoding.json").write_text("{}")
    digests.add(digest(tmp_path / "folds"))
    monkeypatch.setattr("pipeline.provenance.version", lambda _: "0")
    digests.add(digest())
    assert len(digests) == 5


def call(run, *arguments):
    command = [sys.executable, "-m", "pipeline", "predict", *map(str, arguments), "--run", str(run)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_processes_side_by_side_and_a_kill_end_in_the_same_tables(run, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(220):
        cv2.imwrite(str(folder / f"i{number:03d}.png"), draw_nuclei(48, 48, seed=number % 5))
    (folder / "i100.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"^error: .*i100\.png: no PNG"):
        main(["predict", str(folder), "--out", str(tmp_path / "one"), "--run", str(run), "--jobs", "1"])
    killed = call(run, folder, "--out", tmp_path / "two", "--jobs", "2")
    end = time.monotonic() + 120
    while len(list((tmp_path / "two").glob("*.label_map.tif"))) < 10:
        assert time.monotonic() < end
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGTERM)
    _, errors = killed.communicate(timeout=30)
    assert killed.returncode == 130
    assert errors.splitlines()[-1] == "stopped; what was done is kept: run the same command to go on"
    assert not (tmp_path / "two" / MANIFEST).exists()
    again = call(run, folder, "--out", tmp_path / "two", "--jobs", "2")
    out, errors = again.communicate(timeout=200)
    assert again.returncode == 1
    assert errors.splitlines()[-1].startswith("error: ")
    assert "i100.png: no PNG" in errors.splitlines()[-1]
    assert "220 images: " in out
    assert read_tables(tmp_path / "one") == read_tables(tmp_path / "two")


@pytest.mark.parametrize("share", ["a", "2/2", "a/b", "-1/2", "1/0", "1,", ""])
def test_what_is_no_share_is_refused(share, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "a.png", "--out", "out", f"--share={share}"])
    assert "is no share; give K/N" in capsys.readouterr().err


def test_a_queue_gets_no_more_jobs_than_there_are_shards(run, images, tmp_path, capsys):
    words = ["template", "slurm", "predict", *map(str, images), "--out", str(tmp_path / "out"), "--run", str(run)]
    main([*words, "--shares", "50"])
    printed = capsys.readouterr()
    assert "#SBATCH --array=0-0\n" in printed.out
    assert "8 images, shards: 1, a job each" in printed.err
    assert printed.out.startswith("#!/bin/bash\n")


def test_a_queue_gets_no_jobs_for_images_that_are_not_there(run, tmp_path):
    with pytest.raises(SystemExit, match=r"none\.png: no such file"):
        main(["template", "slurm", "predict", str(tmp_path / "none.png"), "--out", str(tmp_path), "--run", str(run)])


def test_shares_are_of_the_shards_that_are_left():
    assert split([3, 4, 8, 9, 10], 2) == ["3,8,10", "4,9"]
    assert split([3], 4) == ["3"]
    assert split(range(200_000), 2) == ["0/2", "1/2"]  # where a list is too long for a command line
    assert [*read_share("1/3")(8)] == [1, 4, 7]
    assert [*read_share("3,5,90")(8)] == [3, 5]


def test_a_share_by_other_networks_than_it_was_handed_out_for_is_refused(run, images, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*are others than where these shares were handed out"):
        main(["predict", *map(str, images), "--out", str(tmp_path), "--run", str(run), "--share", "0/2", "--key", "x"])


def test_a_bound_that_was_raised_tries_a_large_image_again(run, images, tmp_path):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    arguments = ["predict", str(images[0]), "--out", str(tmp_path / "out"), "--run", str(own)]
    content = (own / "params.yaml").read_text()
    (own / "params.yaml").write_text(re.sub("predict_max_pixels: .*", "predict_max_pixels: 10", content))
    with pytest.raises(SystemExit, match="predict_max_pixels"):
        main(arguments)
    (own / "params.yaml").write_text(content)
    main(arguments)


def test_a_share_leaves_the_tables_to_the_whole(run, images, tmp_path, capsys, monkeypatch, small_shards):
    arguments = ["predict", *map(str, images), "--out", str(tmp_path / "out"), "--run", str(run)]
    for share in ("0/2", "1/2"):
        main([*arguments, "--share", share])
        assert not (tmp_path / "out" / MANIFEST).exists()
    assert "i3b.png: no PNG" in capsys.readouterr().out
    monkeypatch.setattr("pipeline.predict.segment.load_segmenter", None)
    with pytest.raises(SystemExit, match=r"^error: .*i3b\.png: no PNG"):
        main(arguments)
    assert "8 of 8 files were done before" in capsys.readouterr().out
    assert len(np.unique(pd.read_csv(tmp_path / "out" / TABLE)["image"])) == 7
