"""A source that is not scored, through every stage: learnt from in every fold, but where it shows what is held out."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from pipeline.errors import InputError
from pipeline.files import digest_archive
from pipeline.folds.predictions import Predictions
from pipeline.folds.table import open_folded, read_folds
from pipeline.folds.training import start_training
from pipeline.images.prepare import prepare_split
from pipeline.images.splits import PreparedSplit
from pipeline.params import Params
from pipeline.stages import folds as folds_stage
from tests.faults.workspace import make_archives
from tests.stages.test_pipeline import run_chain
from tests.tiny import tiny_params, tiny_source

MINE = tiny_source("mine", "pairs", scored=False, weight=2.0, licence="of a friend")


def extra_params(**changes: object) -> Params:
    params = tiny_params()
    sources = {name: source.model_dump() for name, source in params.data.sources.items()} | {"mine": MINE.model_dump()}
    return tiny_params(data__sources=sources, **changes)


def write_pair(folder: Path, name: str, image: np.ndarray, label_map: np.ndarray) -> None:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "images" / f"{name}.png"), image[..., ::-1])
    tifffile.imwrite(folder / "labels" / f"{name}.tif", label_map, photometric="minisblack")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scored images, and in `mine` two of discs, and `0twin`: the last of the eight under a first name."""
    folder, prepared = tmp_path_factory.mktemp("archives"), tmp_path_factory.mktemp("prepared")
    make_archives(folder)
    params, rng = tiny_params(), np.random.default_rng(0)
    prepare_split(params.data.sources, folder, prepared, True, params.data, params.housekeeping)
    split = PreparedSplit.open(prepared)
    last = split.image_ids[-1]
    write_pair(folder / "mine", "0twin", split.image(last), split.label_map(last))
    for number in range(2):
        label_map = np.zeros((90, 100), np.uint16)
        for nucleus, (row, column) in enumerate(rng.integers(15, 75, (4, 2)), 1):
            cv2.circle(label_map, (int(column), int(row)), 9, nucleus, -1)
        image = np.where(label_map > 0, 180, 30)[..., None] + rng.integers(0, 20, (90, 100, 3))
        write_pair(folder / "mine", f"own{number}", image.astype(np.uint8), label_map)
    return folder


@pytest.fixture(scope="module")
def run(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    run_chain(archives, out, extra_params())
    return out


def test_they_have_no_fold_but_where_one_shows_a_held_out_image(archives: Path, run: Path, tmp_path: Path) -> None:
    table = read_folds(run / "folds.csv").set_index("image_id")
    scored = table[table["stratum"] != "unscored"]
    assert len(scored) == 8
    assert table.loc[["own0", "own1"], "fold"].tolist() == [-1, -1]
    assert table.loc["0twin", "fold"] == scored["fold"].iloc[-1]
    assert table.loc["0twin", "group"] == scored["group"].iloc[-1] != "0twin"
    assert pd.read_csv(run / "balance.csv")["images"].sum() == 8
    # The scored images have the groups and folds that they have without the others.
    (tmp_path / "train").mkdir()
    params = tiny_params()
    prepare_split(params.data.sources, archives, tmp_path / "train", True, params.data, params.housekeeping)
    folds_stage.main(tmp_path / "train", tmp_path, params)
    assert read_folds(tmp_path / "folds.csv").set_index("image_id").equals(scored)


def test_all_networks_learn_from_them_but_the_one_that_is_held_to_the_twin(run: Path) -> None:
    folded, params = open_folded(run / "train", run / "folds.csv", (0, 1)), extra_params()
    held_out = int(folded.table.set_index("image_id").loc["0twin", "fold"])
    for fold in (0, 1):
        outside = folded.outside(fold)
        extra = [name for name in outside.image_ids if name in ("own0", "own1", "0twin")]
        assert extra == ["0twin"] * (fold != held_out) + ["own0", "own1"]
        feed = start_training(outside, fold, params.recipe, params.housekeeping).feed
        drawn = {name for step in range(50) for name in feed.name_images(step)}
        assert set(extra) <= drawn <= set(outside.image_ids)


def test_they_are_predicted_and_scored_nowhere(run: Path) -> None:
    scored = set(pd.read_csv(run / "scores.csv")["image_id"])
    assert len(scored) == 8
    assert not scored & {"own0", "own1", "0twin"}
    assert set(Predictions(run / "oof" / "main" / f"{fold}.npz" for fold in (0, 1))) == scored
    assert set(pd.read_csv(run / "oof.csv")["ImageId"]) == scored
    assert json.loads((run / "cv.json").read_text())["images"] == 8


def test_the_run_card_says_what_was_learnt_from(archives: Path, run: Path) -> None:
    card = json.loads((run / "run.json").read_text())
    assert card["sources"] == {
        "dsb2018": {"scored": True, "weight": 1.0, "licence": "CC0-1.0", "images": 8},
        "mine": {"scored": False, "weight": 2.0, "licence": "of a friend", "images": 3},
    }
    assert card["digests"][f"{archives.name}/mine"] == digest_archive(archives / "mine")
    _, _, section = (run / "report.html").read_text().partition("<summary>sources</summary>")
    assert "of a friend" in section.partition("</details>")[0]


def test_a_table_from_before_an_image_was_scored_is_refused(run: Path, tmp_path: Path) -> None:
    table = (run / "train" / "table.csv").read_text()
    (tmp_path / "images.npz").symlink_to(run / "train" / "images.npz")
    (tmp_path / "table.csv").write_text(table.replace("own0,mine,0", "own0,mine,1"))
    with pytest.raises(InputError, match="image 'own0' is in no fold"):
        open_folded(tmp_path, run / "folds.csv", (0, 1))


def test_blocks_and_a_source_that_is_not_scored_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folds\.groups is blocks.* the source mine is not scored"):
        folds_stage.main(run / "train", tmp_path, extra_params(folds__groups="blocks"))


def test_a_split_without_a_scored_image_is_refused(run: Path, tmp_path: Path) -> None:
    table = pd.read_csv(run / "train" / "table.csv", dtype=str)
    (tmp_path / "images.npz").symlink_to(run / "train" / "images.npz")
    table.assign(scored="0").to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(InputError, match="no image of it is scored; set `scored`"):
        folds_stage.main(tmp_path, tmp_path, extra_params())
