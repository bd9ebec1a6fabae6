"""The command line: it answers at once, says in one line what is wrong, and does what its help says on the sample."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.cli import main
from pipeline.experiments.unseen import FEWEST_CLUSTERS
from pipeline.images.archive import index_archive, open_archive
from pipeline.images.masks import crop_mask
from pipeline.images.raw import decode_image
from pipeline.kaggle.upload import LeaderboardScore
from pipeline.nuclei.rle import decode_rle
from pipeline.nuclei.solution import read_solution
from pipeline.nuclei.submission import write_submission
from tests.faults.load import lay_out_run

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"
COMMANDS = (
    "fetch", "pack", "show", "run", "summary", "compare", "score", "check", "predict", "describe", "stack", "keep",
    "restore", "blend", "upload",
)  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['pipeline', '--help']\ntry:\n import pipeline.__main__\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'numpy', 'pandas', 'cv2', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"\n    {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["summary"], "make repro"),
        (["keep", "mine"], "dvc repro"),
        (["keep", "../mine"], "../mine"),
        (["score", "none.csv", "none.csv"], "none.csv"),
        (["check", "none.csv", "--images", "none.zip"], "none.zip"),
        (["predict", "none.png", "--out", "out"], "no trained run"),
        (["fetch", "nowhere"], "nowhere"),
        (["upload", "mine"], "mine"),
        (["describe", "--tile-px", "250"], "nearest is 256"),
        (["stack", "--out", "oof.tif"], "learnt no membranes"),
        (["show", "batch"], "run `dvc repro prepare`"),
        (["compare", "nothing-of-this-name"], "nothing-of-this-name"),
    ],
)
def test_what_is_wrong_is_one_line(workspace: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = str(stop.value.code)
    assert message.startswith("error: ")
    assert words in message
    assert "\n" not in message
    assert sorted(path.name for path in workspace.iterdir()) == ["params.yaml"]


def draw_black(folder: Path, *names: bytes) -> list[str]:
    """Write a small black PNG for each name, which need be no text, and return their paths as Python has them."""
    paths = [str(folder / os.fsdecode(name)) for name in names]
    for path in paths:
        Path(path).write_bytes(cv2.imencode(".png", np.zeros((20, 20), np.uint8))[1].tobytes())
    return paths


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out_run(tmp_path_factory.mktemp("run"), seed=0)


def test_a_name_that_is_no_text_is_printed_like_any_other(run: Path, tmp_path: Path) -> None:
    """In results and in errors, where the stream is strict, as under en_US.UTF-8."""
    paths = draw_black(tmp_path, b"1_caf\xe9.png", b"3_plain.png")
    (tmp_path / os.fsdecode(b"2_t\xeate.png")).write_bytes(b"no image")
    command = ["-m", "pipeline", "predict", *paths, str(tmp_path / os.fsdecode(b"2_t\xeate.png"))]
    done = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path / "out"), "--run", str(run)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 1
    printed = [Path(line).name for line in done.stdout.splitlines() if line.endswith("nuclei")]
    assert printed == ["1_caf\\udce9.label_map.tif: 0 nuclei", "3_plain.label_map.tif: 0 nuclei"]
    assert "2_t\\udceate.png: no PNG" in done.stderr.splitlines()[-1]
    assert len(list((tmp_path / "out").glob("[0-9]*"))) == 6


def test_predict_twice_beside_the_images_gives_the_same_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_black(tmp_path, b"a.png", b"b.png")

    def predict() -> dict[str, bytes]:
        files = [str(path) for path in sorted(tmp_path.glob("[!.]*"))]
        main(["predict", *files, "--out", str(tmp_path), "--run", str(run), *again])
        return {path.name: path.read_bytes() for path in tmp_path.glob("[!.]*") if path.name != "manifest.csv"}

    again: list[str] = []
    first = predict()
    assert len(first) == 9
    assert "passed over" not in capsys.readouterr().err
    assert predict() == first
    said = capsys.readouterr()
    assert "8 of 10 files are passed over" in said.err
    assert "2 of 2 files were done before; --no-resume does them anew" in said.out
    again = ["--no-resume"]
    assert predict() == first
    assert "a.label_map.tif: 0 nuclei" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "out", "words"),
    [
        (["a.png"], "a.png/out", "no folder that takes results"),
        (["b.png"], "out", "no such file"),
        (["none"], "out", "no such file"),
        (["none*"], "out", "no file fits"),
    ],
)
def test_paths_are_refused_before_anything_is_loaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[str], out: str, words: str
) -> None:
    draw_black(tmp_path, b"a.png")
    monkeypatch.setattr("pipeline.predict.segment.load_segmenter", None)
    with pytest.raises(SystemExit, match=rf"^error: .*{words}"):
        main(["predict", *(str(tmp_path / name) for name in images), "--out", str(tmp_path / out), "--run", str(run)])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_channel_reaches_the_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("pipeline.predict.reading.read_images", lambda _, most, channel: asked.append(channel) or [])
    paths = draw_black(tmp_path, b"a.png")
    for option in ([], ["--channel", "2"]):
        main(["predict", *paths, "--out", str(tmp_path / "out"), "--run", str(run), *option])
    assert asked == [None, 2]


def write_truth(path: Path) -> None:
    """Write the sample's solution as a submission; a pixel of two true nuclei goes to the later one."""
    items = []
    for name, truth in sorted(read_solution(SAMPLE / "stage1_solution.csv").truths.items()):
        label_map = np.zeros(truth.shape, np.int32)
        for label, row in enumerate(truth.rows, start=1):
            label_map[decode_rle(row.text, truth.shape)] = label
        items.append((name, label_map))
    write_submission(path, items)


def test_the_truth_is_valid_and_scores_nearly_one(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not quite: two true nuclei share a pixel, which a submission cannot give to both."""
    write_truth(workspace / "truth.csv")
    main(["score", "truth.csv", str(SAMPLE / "stage1_solution.csv")])
    words = capsys.readouterr().out.split()
    assert float(words[1]) == pytest.approx(1, abs=1e-3)
    assert words[2:] == ["over", "16", "images"]
    main(["check", "truth.csv", "--images", str(SAMPLE / "stage1_test.zip")])
    assert "valid" in capsys.readouterr().out


def test_a_submission_that_lacks_an_image_fails_the_check(workspace: Path) -> None:
    write_truth(workspace / "truth.csv")
    lines = (workspace / "truth.csv").read_text().splitlines(keepends=True)
    dropped = lines[1].split(",")[0]
    (workspace / "cut.csv").write_text("".join(line for line in lines if not line.startswith(dropped)))
    with pytest.raises(SystemExit, match=dropped):
        main(["check", "cut.csv", "--images", str(SAMPLE / "stage1_test.zip")])


def test_the_samples_solution_is_the_masks_that_are_not_in_its_archive() -> None:
    """Every run of the solution lies in its image, and no image of the test part is one of the training part."""
    truths = read_solution(SAMPLE / "stage1_solution.csv").truths
    with open_archive(SAMPLE / "stage1_test.zip") as test, open_archive(SAMPLE / "stage1_train.zip") as train:
        entries = {entry.image_id: entry for entry in index_archive(test, False, True)}
        train_ids = {entry.image_id for entry in index_archive(train, True, False)}
        assert entries.keys() == truths.keys()
        assert not entries.keys() & train_ids
        for name, entry in entries.items():
            assert decode_image(test.read(entry.image_entry), name, 10**8).shape[:2] == truths[name].shape


@pytest.fixture
def finished(workspace: Path) -> Path:
    """A workspace with a finished run, which has no local card."""
    rng = np.random.default_rng(0)
    for name in ("folds", "submissions"):
        (workspace / name).mkdir()
    columns = ",".join(f"ap{percent}" for percent in range(50, 100, 5))
    rows = [",".join([f"i{n},g{n % 10},{n % 10 % 3},fluorescence", *[f"{rng.random():.3f}"] * 11]) for n in range(30)]
    (workspace / "folds" / "scores.csv").write_text(f"image_id,group,fold,image_type,ap,{columns}\n" + "\n".join(rows))
    (workspace / "folds" / "folds.csv").write_text("image_id,group,stratum,fold\n")
    (workspace / "folds" / "decoding.json").write_text("{}")
    cv = {"cv_map": 0.5, "cv_std": 0.1, "cv_low": 0.4, "cv_high": 0.6, "pooled_ap": 0.5, "images": 30}
    (workspace / "folds" / "cv.json").write_text(json.dumps(cv))
    card = {
        "cv_map": 0.5, "cv_std": 0.1, "expected_lb": 0.4, "expected_lb_low": 0.3, "expected_lb_high": 0.5,
        "lb_map": None, "seed": 1, "threads": 2,
    }  # fmt: skip
    (workspace / "submissions" / "run.json").write_text(json.dumps(card))
    (workspace / "submissions" / "submission.csv").write_text("ImageId,EncodedPixels\n")
    (workspace / "submissions" / "expected.csv").write_text("image_id,expected,low,high\n")
    return workspace


def write_local_card(submissions: Path) -> None:
    digest = hashlib.sha256((submissions / "run.json").read_bytes()).hexdigest()
    local = {"run": digest, "wall_s": 601.0, "device": "cpu", "revision": "abc", "epoch_seconds": {}}
    (submissions / "run.local.json").write_text(json.dumps(local))


def test_keep_and_compare_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_local_card(finished / "submissions")
    main(["keep", "mine"])
    assert "not known" not in capsys.readouterr().out
    kept = finished / "submissions" / "mine"
    assert {path.name for path in kept.iterdir()} == {
        "submission.csv",
        "expected.csv",
        "run.json",
        "cv.json",
        "scores.csv",
        "folds.csv",
        "decoding.json",
        "params.yaml",
        "contents.json",
    }
    row = (finished / "submissions" / "ledger.csv").read_text().splitlines()[1]
    assert row == "mine,0.5,0.1,0.4,0.3,0.5,,601.0,1,2,cpu,abc"
    main(["compare", "mine"])
    assert "no difference" in capsys.readouterr().out


def test_a_run_without_its_networks_is_not_restored(finished: Path) -> None:
    main(["keep", "mine"])
    with pytest.raises(SystemExit, match=r"^error: mine: kept without its networks"):
        main(["restore", "mine"])
    (finished / "submissions" / "mine" / "contents.json").unlink()
    with pytest.raises(SystemExit, match=r"mine was kept by a version that did not keep networks; train it again"):
        main(["predict", "a.png", "--out", "out", "--run", "mine"])
    with pytest.raises(SystemExit, match=r"not there; keep the run first \(`python -m pipeline keep yours`\)"):
        main(["restore", "yours"])


def test_runs_are_compared_by_what_the_yardstick_found(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keep", "old"])
    cv = json.loads((finished / "folds" / "cv.json").read_text())
    clusters = [f"dark{i}" for i in range(FEWEST_CLUSTERS)]
    for name, ap in (("better", 0.5), ("worse", 0.25)):
        measured = {**cv, "unseen_map": ap, "unseen": dict.fromkeys(clusters, ap)}
        (finished / "folds" / "cv.json").write_text(json.dumps(measured))
        main(["keep", name])
    capsys.readouterr()
    main(["compare", "worse", "better", "--by", "unseen"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["run", "better", "worse"]
    assert any("better is better than worse on unseen acquisitions: +0.250" in line for line in lines)
    main(["compare", "old", "better"])
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[:3]] == ["unseen_map", "-", "0.500"]
    with pytest.raises(SystemExit, match=r"^error: old: no unseen_map.*`python -m pipeline\.studies\.unseen`"):
        main(["compare", "old", "better", "--by", "unseen"])


def test_keep_says_what_it_does_not_know(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keep", "mine"])
    assert "run.local.json: not of this run" in capsys.readouterr().out
    assert json.loads((finished / "submissions" / "mine" / "run.json").read_text())["revision"] is None


def test_summary_says_what_there_is(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["summary"])
    words = capsys.readouterr().out
    assert "expected on the test set: 0.400 (0.300 .. 0.500)" in words
    assert "submission.csv" in words
    assert "stages took" not in words
    write_local_card(finished / "submissions")
    main(["summary"])
    assert "stages took 10 min on cpu, at revision abc" in capsys.readouterr().out


def test_the_score_of_an_upload_reaches_card_and_ledger(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def upload(file: Path, description: str, timeout_s: float, poll_s: float) -> LeaderboardScore:
        asked.append((file, description, timeout_s))
        return LeaderboardScore(None, 0.25)

    monkeypatch.setattr("pipeline.kaggle.upload.upload_submission", upload)
    main(["keep", "mine"])
    main(["upload", "mine", "--timeout-s", "7"])
    file = Path("submissions/mine/submission.csv")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert asked == [(file, f"mine: CV 0.5000 +- 0.1000, expected 0.400 ({digest[:12]})", 7.0)]
    assert json.loads((finished / "submissions" / "mine" / "run.json").read_text())["lb_map"] == 0.25
    assert ",0.25," in (finished / "submissions" / "ledger.csv").read_text()


def test_describe_takes_another_network_by_name(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["describe", "--unet", "vanilla", "--svg", "unet.svg"])
    vanilla = capsys.readouterr().out
    assert "vanilla" in (workspace / "unet.svg").read_text()
    main(["describe"])
    assert capsys.readouterr().out != vanilla


def test_the_sample_was_drawn_as_its_script_says() -> None:
    """Types, sizes and fields: at least three whole mosaics, an image with more than 255 nuclei, under 6 MB."""
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 6e6
    with zipfile.ZipFile(SAMPLE / "stage1_train.zip") as archive:
        entries = index_archive(archive, True, False)
        assert 50 <= len(entries) <= 70
        assert max(len(entry.mask_entries) for entry in entries) > 255
        areas = [
            int(crop_mask(decode_image(archive.read(name), name, 10**8), name).pixels.sum())
            for entry in entries
            for name in entry.mask_entries[:3]
        ]
    assert min(areas) < 40
    assert max(areas) > 2000
