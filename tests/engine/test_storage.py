"""The folder that machines share: a name for each set of inputs, and results that come back only to these."""

import shutil
from pathlib import Path

import pytest

from pipeline.engine import processes
from pipeline.engine.chain import RUNTIME, is_done, read_chain
from pipeline.engine.storage import adopt, driving, lay_out, lend, list_unfinished, name_folder
from pipeline.errors import InputError
from pipeline.files import sha256_of, write_json
from tests.engine.items import FOLD, SHARE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    folder = tmp_path / "checkout"
    for name in ("data/prepared/train/images.npz", "data/prepared/test/images.npz", "folds/folds.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for kind in ("weights", "sizes"):
        (folder / "folds" / kind / "main").mkdir(parents=True)
        (folder / "folds" / kind / "main" / "0.safetensors").write_text(kind)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    monkeypatch.chdir(folder)
    return folder


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def finish(folder: Path, fold: int) -> None:
    """Do as if a machine had run the stages of a fold."""
    for stage in read_chain(folder, FOLD, f"main-{fold}"):
        for out in stage.outs:
            (folder / out).parent.mkdir(parents=True, exist_ok=True)
            (folder / out).write_text(f"{stage.name} {fold}")
        write_json(folder / stage.marker, {str(out): sha256_of(folder / out) for out in stage.outs})


def test_what_a_machine_needs_lies_there_and_nothing_else(checkout, tmp_path):
    folds, shares = (lay_out(tmp_path / "shared", work) for work in (FOLD, SHARE))
    files = [{path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file()} for one in (folds, shares)]
    assert all((one / "pipeline" / "__main__.py").is_file() for one in (folds, shares))
    own = [{name for name in names if not name.startswith("pipeline/")} for names in files]
    always = {"dvc.yaml", "params.yaml", "environment.json"}
    assert own[0] == always | {"data/prepared/train/images.npz", "folds/folds.csv"}
    networks = {"folds/weights/main/0.safetensors", "folds/sizes/main/0.safetensors"}
    assert own[1] == always | networks | {"data/prepared/test/images.npz"}


@pytest.mark.parametrize(
    ("name", "old", "new", "moved"),
    [
        ("params.yaml", "seed: 2018", "seed: 2019", (True, False)),  # of folds and training
        ("params.yaml", "views: identity", "views: flips", (True, True)),
        ("params.yaml", "score_images: 8", "score_images: 9", (False, False)),  # changes no result
        ("dvc.yaml", "pipeline.stages train", "pipeline.stages  train", (True, False)),
        ("data/prepared/test/images.npz", "test", "another", (False, True)),
        ("folds/folds.csv", "folds", "others", (True, False)),
    ],
)
def test_other_inputs_have_another_folder(checkout, tmp_path, name, old, new, moved):
    before = [name_folder(tmp_path, work) for work in (FOLD, SHARE)]
    replace(checkout / name, old, new)
    after = [name_folder(tmp_path, work) for work in (FOLD, SHARE)]
    assert tuple(one != other for one, other in zip(before, after, strict=True)) == moved


def test_what_changes_no_result_is_kept_up_to_date(checkout, tmp_path):
    folder = lay_out(tmp_path / "shared", FOLD)
    (folder / "pipeline" / "launch.py").write_text("old")
    replace(checkout / "params.yaml", "score_images: 8", "score_images: 9")
    assert lay_out(tmp_path / "shared", FOLD) == folder
    assert (folder / "pipeline" / "launch.py").read_bytes() == (ROOT / "pipeline" / "launch.py").read_bytes()
    assert "score_images: 9" in (folder / "params.yaml").read_text()


def test_machines_of_two_kinds_make_no_run_together(checkout, tmp_path, monkeypatch):
    adopted = []
    monkeypatch.setattr(processes, "adopt", lambda folder, work, numbers: adopted.append([*numbers]))
    monkeypatch.setattr(processes, "find_runtime", lambda: {"device": "cpu", "precision": "bf16", "kind": "avx2"})
    folder = lay_out(tmp_path / "shared", FOLD)
    finish(folder, 0)
    write_json(folder / RUNTIME, {"device": "cuda", "precision": "bf16", "kind": "H200"})
    with pytest.raises(InputError, match=r"runs networks on cpu, bf16, avx2, and the first machine did on cuda, bf16"):
        processes.take_finished(tmp_path / "shared", FOLD, ("main-0", "main-1"))
    finish(folder, 1)
    assert processes.take_finished(tmp_path / "shared", FOLD, ("main-0", "main-1")) == []
    (folder / RUNTIME).unlink()
    (folder / "folds/oof/main/1.npz").unlink()
    assert processes.take_finished(tmp_path / "shared", FOLD, ("main-0", "main-1")) == ["main-1"]
    assert adopted == [["main-0", "main-1"], ["main-0"]]


def test_a_fold_is_finished_once_all_of_its_results_are_whole(checkout, tmp_path):
    folder = lay_out(tmp_path / "shared", FOLD)
    assert list_unfinished(folder, FOLD, ("main-0", "main-1")) == ["main-0", "main-1"]
    finish(folder, 1)
    assert list_unfinished(folder, FOLD, ("main-0", "main-1")) == ["main-0"]
    (folder / "folds/sizes/main/1.safetensors").write_text("cut")
    assert list_unfinished(folder, FOLD, ("main-0", "main-1")) == ["main-0", "main-1"]
    assert [is_done(folder, stage) for stage in read_chain(folder, FOLD, "main-1")] == [True, False, True]


def test_stages_before_the_first_stale_one_are_lent(checkout, tmp_path):
    """As where `size` and `predict_oof` of fold 0 have other parameters than when the checkout's fold was run."""
    (checkout / "folds/history/main").mkdir(parents=True)
    for name in ("weights/main/0.safetensors", "history/main/0.csv", "sizes/main/0.safetensors"):
        (checkout / "folds" / name).write_text(f"own {name}")
    folder = lay_out(tmp_path / "shared", FOLD)
    lend(folder, FOLD, ("main-0", "main-1"), {"main-0": ["size", "predict_oof"], "main-1": ["train"]})
    assert [is_done(folder, stage) for stage in read_chain(folder, FOLD, "main-0")] == [True, False, False]
    assert (folder / "folds/weights/main/0.safetensors").read_text() == "own weights/main/0.safetensors"
    assert not any(is_done(folder, stage) for stage in read_chain(folder, FOLD, "main-1"))
    finish(folder, 1)
    lend(folder, FOLD, ("main-1",), {})
    assert (folder / "folds/weights/main/1.safetensors").read_text() == "train 1"  # what is there stays


def test_what_was_edited_meanwhile_takes_no_results(checkout, tmp_path):
    folder = lay_out(tmp_path / "shared", FOLD)
    finish(folder, 0)
    replace(checkout / "params.yaml", "seed: 2018", "seed: 2019")
    with pytest.raises(InputError, match=r"^parameters, code or images of this checkout were changed while work was"):
        adopt(folder, FOLD, ("main-0",))
    assert (checkout / "folds/weights/main/0.safetensors").read_text() == "weights"


def test_work_has_one_driver(checkout, tmp_path):
    folder = lay_out(tmp_path / "shared", FOLD)
    with driving(folder), pytest.raises(InputError, match="another run hands out this work"), driving(folder):
        pass
