"""Kept runs live: networks come back from DVC, predict, and are blended. One small run by the real DVC, and a blend."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.commands.blending import check_alike, check_folds_alike, join_params
from pipeline.errors import InputError
from pipeline.params import Params
from tests.faults.workspace import digest_results, make_workspace
from tests.tiny import tiny_params

NETWORKS = [f"folds/{kind}/main/{fold}.safetensors" for kind in ("weights", "sizes") for fold in (0, 1)]


def run(folder: Path, *words: str, module: str = "pipeline") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC")}
    environment |= {"DVC_SITE_CACHE_DIR": str(folder / ".dvc" / "site")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def succeed(folder: Path, *words: str, module: str = "pipeline") -> str:
    done = run(folder, *words, module=module)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with two kept runs, of other seeds: `one`, whose results lie there no more, and `two`."""
    folder = make_workspace(tmp_path_factory.mktemp("kept"))
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content["train"] |= {"epochs": 2, "steps_per_epoch": 5}
    for name, seed in (("one", 1), ("two", 2)):
        content["train"]["seed"] = seed
        (folder / "params.yaml").write_text(yaml.safe_dump(content))
        succeed(folder, "repro", "-q", module="dvc")
        said = succeed(folder, "keep", name)
        assert "files are in DVC's cache, here alone: no remote is configured" in said
    return folder


def test_what_is_gone_comes_back_and_dvc_has_nothing_to_do(checkout: Path) -> None:
    before = digest_results(checkout)
    shutil.rmtree(checkout / "folds" / "weights")
    (checkout / "folds" / "trees.npz").unlink()
    said = succeed(checkout, "restore", "two")
    assert "3 files that were missing here are back" in said
    assert digest_results(checkout) == before
    assert "up to date" in succeed(checkout, "status", module="dvc")


def test_a_kept_run_predicts_as_it_did(checkout: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(checkout / "data" / "sample" / "stage1_test.zip", tmp_path / "images")
    images = sorted(map(str, (tmp_path / "images").rglob("*.png")))
    for name in ("one", "two", "."):
        succeed(checkout, "predict", *images, "--out", str(tmp_path / name.replace(".", "here")), "--run", name)
    tables = {name: (tmp_path / name / "nuclei.csv").read_bytes() for name in ("one", "two", "here")}
    assert tables["two"] == tables["here"]
    assert (checkout / ".resume" / "kept" / "one" / "folds" / "weights" / "main" / "0.safetensors").is_file()


def test_two_kept_runs_make_a_third(checkout: Path) -> None:
    before = digest_results(checkout)
    said = succeed(checkout, "blend", "one", "two", "--name", "both")
    assert "submissions/both, of one, two; its row is in submissions/ledger.csv" in said
    kept = checkout / "submissions" / "both"
    card = json.loads((kept / "run.json").read_text())
    assert (card["parts"], card["mixed_folds"]) == (["one", "two"], False)
    assert list(card["params"]["members"]) == ["one_main", "two_main"]
    table = pd.read_csv(checkout / "submissions" / "ledger.csv")
    assert table["name"].tolist() == ["one", "two", "both"]
    images = str(checkout / "data" / "sample" / "stage1_test.zip")
    assert "valid" in succeed(checkout, "check", str(kept / "submission.csv"), "--images", images)
    assert "both less one, paired on 8 images" in succeed(checkout, "compare", "one", "both")
    # The current run is as it was; the blend is a kept run like others.
    assert digest_results(checkout) == before
    succeed(checkout, "restore", "both")
    contents = json.loads((kept / "contents.json").read_text())
    assert {name for name in contents if "weights" in name} == {
        f"folds/weights/{member}/{fold}.safetensors" for member in ("one_main", "two_main") for fold in (0, 1)
    }
    succeed(checkout, "blend", "both", "two", "--name", "again")  # a blend is blended as others are
    fault = run(checkout, "blend", "one", "two", "--name", "both").stderr.splitlines()[-1]
    assert "submissions/both: there already" in fault


def write_folds(path: Path, **folds: int) -> Path:
    table = pd.DataFrame({"image_id": [*folds], "group": [*folds], "stratum": "s", "fold": [*folds.values()]})
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path


def test_runs_whose_folds_differ_are_refused_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_folds(tmp_path / "a.csv", x=0, y=1, z=1), write_folds(tmp_path / "b.csv", x=0, y=0, z=1)
    assert check_folds_alike({"a": one, "c": one}, may_mix=False) is False
    with pytest.raises(InputError, match=r"^b and a have 1 of 3 images in other folds: .* --mixed-folds blends them"):
        check_folds_alike({"a": one, "b": other}, may_mix=False)
    assert check_folds_alike({"a": one, "b": other}, may_mix=True) is True
    assert "that of a is taken, and the CV may flatter" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"^b and a are of other images, w for one; blend runs on the same data"):
        check_folds_alike({"a": one, "b": write_folds(tmp_path / "c.csv", x=0, y=1, w=1)}, may_mix=True)


def test_members_of_all_runs_are_those_of_the_blend() -> None:
    one = tiny_params()
    content = one.model_dump() | {"members": {"main": {}, "b": {"train.seed": 5}}, "member_ids": ["main", "b"]}
    two = Params.model_validate(content | {"train": {**content["train"], "epochs": 3}})
    params, parts = join_params({"run-1": one, "2nd": two}, "greedy")
    assert parts == {"run_1_main": ("run-1", "main"), "run_2nd_main": ("2nd", "main"), "run_2nd_b": ("2nd", "b")}
    assert params.of_member("run_2nd_b").train == two.of_member("b").train
    assert params.of_member("run_1_main").recipe == one.recipe
    assert params.ensemble.weights == "greedy"


def test_runs_at_other_zooms_make_no_mean() -> None:
    with pytest.raises(
        InputError, match=r"^b: predict\.scales is \(1\.0,\) and not \(.*\), as of a: they make no blend"
    ):
        check_alike({"a": tiny_params(), "b": tiny_params(predict__scales=(1.0,))})
