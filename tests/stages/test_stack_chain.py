"""A stack of sections through every stage: blocks of slices as folds, valid padding, the challenge's scores, a TIFF."""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.experiments.membranes import write_stack
from pipeline.files import write_text
from pipeline.folds.predictions import Predictions, write_predictions
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.membrane_metric import count_slice, score_stack
from pipeline.params import Params
from pipeline.unet.predict import Prediction
from tests.stages.test_pipeline import run_chain
from tests.tiny import tiny_params, tiny_source

SLICES, SIDE = 6, 72


def make_stack(folder: Path) -> Path:
    """Write a zip of grey sections whose membranes are dark lines on a bright ground."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "stack.zip", "w") as archive:
        for number in range(SLICES):
            label = np.full((SIDE, SIDE), 255, np.uint8)
            label[:, 20 + 2 * number], label[40 - number] = 0, 0
            image = np.where(label > 0, 190, 60) + rng.integers(-20, 20, label.shape)
            for kind, array in (("image", image.astype(np.uint8)), ("label", label)):
                archive.writestr(f"{kind}/{number}.png", cv2.imencode(".png", array)[1].tobytes())
    return folder


def stack_params() -> Params:
    content = tiny_params().model_dump()
    source = tiny_source("stack.zip", "stack").model_dump()
    content["data"] |= {"sources": {"sections": source}, "test": None, "solution": None}
    content["folds"] |= {"groups": "blocks", "ids": [0, 1, 2]}
    content["unet"] |= {"padding": "valid", "upsampling": "transposed", "dropout": 0.5}
    content["contrast"] |= {"density": False}
    content["targets"] |= {"boundary": "membrane"}
    content["loss"] |= {"terms": {"bce": {"weight": 1.0}}, "weight_map": True}
    content["train"] |= {"tile_px": 108, "crop_px": 68, "start_crop_px": 68}
    content["size"] |= {"object_diameter_px": 0.0}
    content["predict"] |= {"scales": [1.0]}
    content["select"] |= {"trees": 0}
    return Params.model_validate(content)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stack")
    run_chain(make_stack(tmp_path_factory.mktemp("archives")), out, stack_params())
    return out


def test_folds_are_blocks_of_neighbouring_slices(run: Path) -> None:
    folds = pd.read_csv(run / "folds.csv")
    assert folds["image_id"].tolist() == [f"stack.{number}" for number in range(SLICES)]
    assert folds["fold"].tolist() == [0, 0, 1, 1, 2, 2]
    assert folds["group"].nunique() == 3


def test_the_challenge_s_scores_are_in_the_summary(run: Path) -> None:
    cv = json.loads((run / "cv.json").read_text())
    predictions = Predictions(run / "oof" / "main" / f"{fold}.npz" for fold in (0, 1, 2))
    counts = []
    for name, label_map in PreparedSplit.open(run / "train").label_maps():
        inside = 1 - predictions[name][0][0, ..., 1] / np.float32(255)
        counts.append(count_slice(label_map, inside))
    assert len(counts) == SLICES
    scores = score_stack(counts)
    assert set(scores) >= {"v_rand", "v_info", "rand_error", "pixel_error"}
    assert {name: cv[name] for name in scores} == pytest.approx(scores)
    card = json.loads((run / "run.json").read_text())
    assert card["lb_map"] is None
    assert (run / "submission.csv").read_text() == "ImageId,EncodedPixels\n"


def workspace_of(run: Path, folder: Path, params: Params) -> Path:
    """Lay a run out as the folders of a checkout."""
    (folder / "folds").mkdir(parents=True)
    (folder / "folds" / "oof").symlink_to(run / "oof")
    for name in ("folds.csv", "decoding.json"):
        (folder / "folds" / name).symlink_to(run / name)
    write_text(folder / "params.yaml", params.model_dump_json())
    return folder


def test_out_of_fold_probabilities_become_a_stack(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = workspace_of(run, tmp_path / "run", stack_params())
    main(["stack", "--out", str(tmp_path / "oof.tif"), "--run", str(checkout)])
    assert f"{SLICES} pages of {SIDE} x {SIDE} px" in capsys.readouterr().out
    pages = tifffile.imread(tmp_path / "oof.tif")
    assert pages.dtype == np.float32
    assert pages.shape == (SLICES, SIDE, SIDE)
    boundary = Predictions([run / "oof" / "main" / "1.npz"])["stack.2"][0][0, ..., 1]
    np.testing.assert_allclose(pages[2], 1 - boundary / 255, atol=1e-6)


def test_a_run_without_membranes_has_no_stack(run: Path, tmp_path: Path) -> None:
    params = tiny_params()
    checkout = workspace_of(run, tmp_path / "run", params)
    with pytest.raises(InputError, match="learnt no membranes"):
        write_stack(tmp_path / "oof.tif", params.targets, ("main",), params.folds.ids, checkout / "folds")
    assert not (tmp_path / "oof.tif").exists()


def test_slices_of_two_sizes_are_no_stack_and_nothing_is_left(tmp_path: Path) -> None:
    checkout = tmp_path / "run"
    (checkout / "folds" / "oof" / "main").mkdir(parents=True)
    table = pd.DataFrame({"image_id": ["a", "b", "c"], "group": "g", "stratum": "s", "fold": [0, 1, 2]})
    write_text(checkout / "folds" / "folds.csv", table.to_csv(index=False))
    picks = {"all": {"main": 1}, "folds": {str(fold): {"main": 1} for fold in range(3)}}
    write_text(checkout / "folds" / "decoding.json", json.dumps({"members": picks}))
    for fold, (name, side) in enumerate((("a", 8), ("b", 8), ("c", 9))):
        prediction = Prediction(name, np.zeros((1, 8, side, 3), np.uint8), 1.0)
        write_predictions(checkout / "folds" / "oof" / "main" / f"{fold}.npz", [prediction])
    (tmp_path / "oof.tif").write_bytes(b"before")
    with pytest.raises(InputError, match="image c is"):
        write_stack(tmp_path / "oof.tif", stack_params().targets, ("main",), (0, 1, 2), checkout / "folds")
    assert (tmp_path / "oof.tif").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2
