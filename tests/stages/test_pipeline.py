"""The whole chain, stage by stage on a few of the sample's images with a tiny network: zips to a checked submission."""

import json
import shutil
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from pipeline.commands.prediction import describe_run
from pipeline.errors import InputError
from pipeline.experiments.unseen import settings_key, write_unseen
from pipeline.folds.blend import read_weights
from pipeline.folds.candidate_store import CandidateStore
from pipeline.folds.finder import load_finder
from pipeline.folds.predictions import Predictions
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.candidates import FEATURES
from pipeline.nuclei.metric import score
from pipeline.nuclei.solution import read_solution, score_submission
from pipeline.nuclei.submission import read_label_maps, read_submission, validate_submission
from pipeline.params import Params
from pipeline.predict.paths import check_run
from pipeline.predict.segment import Segmenter, load_segmenter, segment_files
from pipeline.progress import progress_bar
from pipeline.stages import evaluate, folds, predict_oof, predict_testset, prepare, report, size, submit, train
from tests.faults.workspace import make_archives
from tests.tiny import tiny_params

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "sample"
KNOWN = ROOT / "folds" / "known.csv"


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 8 smallest training images of the sample, 3 test images and their solution."""
    folder = tmp_path_factory.mktemp("archives")
    make_archives(folder)
    return folder


def run_chain(archives: Path, out: Path, params: Params) -> None:
    """Call every stage's main in dvc.yaml's order."""
    weights, sizes, oof, history = out / "weights", out / "sizes", out / "oof", out / "history"
    train_split, test_split, table = out / "train", out / "test", out / "folds.csv"
    scores, cv, decoding = out / "scores.csv", out / "cv.json", out / "decoding.json"
    prepare.main(archives, train_split, test_split, params)
    folds.main(train_split, out, params)
    for name, fold in product(params.member_ids, params.folds.ids):
        member, file = params.of_member(name), f"{fold}.safetensors"
        own, read = weights / name, sizes / name
        train.main(train_split, table, fold, own / file, history / name / f"{fold}.csv", out / "resume" / name, member)
        size.main(train_split, table, own, fold, read / file, member)
        predict_oof.main(train_split, table, own, read, fold, oof / name / f"{fold}.npz", member)
    candidates, trees, nuclei = out / "candidates.npz", out / "trees.npz", out / "oof.csv"
    if not (unseen := out / "unseen.csv").exists():
        unseen.write_text("settings,cluster,images,ap\n")
    signals, expected = out / "signals.csv", out / "expected.csv"
    evaluate.main(train_split, table, oof, unseen, scores, cv, decoding, candidates, trees, nuclei, signals, params)
    for name, share in product(params.member_ids, params.data.test_shares):
        path, member = out / "probabilities" / name / f"{share}.npz", params.of_member(name)
        predict_testset.main(test_split, weights / name, sizes / name, share, path, member)
    card, submission = out / "run.json", out / "submission.csv"
    submit.main(
        archives=archives, trained=train_split, prepared=test_split, probabilities=out / "probabilities",
        decoding=decoding, trees=trees, scores=scores, signals=signals, known=KNOWN, summary=cv,
        weights=weights, submission=submission, expected=expected, card=card, local=out / "run.local.json",
        journal=out / "journal", params=params,
    )  # fmt: skip
    report.main(
        prepared=train_split, nuclei=nuclei, scores=scores, summary=cv, histories=history, card=card,
        expected=expected, submission=submission, curves=out / "curves.csv", out=out / "report.html", params=params,
    )  # fmt: skip


def with_members(params: Params, **changes: dict[str, Any]) -> Params:
    """Return the parameters with members beside `main`, by their changes."""
    members = {"main": {}, **changes}
    return Params.model_validate(params.model_dump() | {"members": members, "member_ids": [*members]})


@pytest.fixture(scope="module")
def run(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    run_chain(archives, out, tiny_params())
    return out


def test_the_submission_is_valid_and_scored_as_the_card_says(archives: Path, run: Path) -> None:
    validate_submission(run / "submission.csv", PreparedSplit.open(run / "test").shapes())
    card = json.loads((run / "run.json").read_text())
    solution = read_solution(archives / "stage1_solution.csv")
    assert card["lb_map"] == score_submission(read_submission(run / "submission.csv"), solution).mean
    assert card["expected_lb_low"] <= card["expected_lb"] <= card["expected_lb_high"]
    foretold = pd.read_csv(run / "expected.csv", dtype={"image_id": str})
    assert foretold["image_id"].tolist() == PreparedSplit.open(run / "test").image_ids
    assert foretold["expected"].mean() == pytest.approx(card["expected_lb"], abs=1e-6)
    assert len(card["digests"]) == 6
    assert card["params"]["folds"]["ids"] == [0, 1]


def test_every_training_image_is_scored_once_by_its_own_fold(run: Path) -> None:
    scores, table = pd.read_csv(run / "scores.csv"), pd.read_csv(run / "folds.csv")
    assert scores["image_id"].tolist() == table["image_id"].tolist()
    assert scores["fold"].tolist() == table["fold"].tolist()
    columns = [f"ap{percent}" for percent in range(50, 100, 5)]
    np.testing.assert_allclose(scores[columns].mean(axis=1), scores["ap"], atol=2e-6)
    cv = json.loads((run / "cv.json").read_text())
    assert cv["cv_map"] == pytest.approx(scores["ap"].mean(), abs=1e-6)
    for fold in (0, 1):
        held_out = set(table.loc[table["fold"] == fold, "image_id"])
        assert set(Predictions([run / "oof" / "main" / f"{fold}.npz"])) == held_out


def evaluate_again(run: Path, out: Path, params: Params, unseen: Path | None = None) -> dict[str, Any]:
    """Evaluate a run's predictions with other parameters or another yardstick, and return its cv.json."""
    names = ("scores.csv", "cv.json", "decoding.json", "candidates.npz", "trees.npz", "oof.csv", "signals.csv")
    inputs = run / "train", run / "folds.csv", run / "oof", unseen or run / "unseen.csv"
    evaluate.main(*inputs, *(out / name for name in names), params)
    return json.loads((out / "cv.json").read_text())


def test_what_the_yardstick_found_for_a_run_s_parameters_is_in_its_summary(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params, unseen = tiny_params(), tmp_path / "unseen.csv"
    found = pd.DataFrame({"cluster": ["dark", "pale"], "images": 24, "ap": [0.25, 0.5]})
    write_unseen(unseen, settings_key(params.recipe, params.predict, params.decode, params.select), found)
    write_unseen(unseen, "of another setting", found)
    cv = evaluate_again(run, tmp_path, params, unseen)
    assert cv.pop("unseen_map") == 0.375
    assert cv.pop("unseen") == {"dark": 0.25, "pale": 0.5}
    assert "unseen acquisitions: 0.375, the mean over 2 clusters" in capsys.readouterr().out
    # It changes nothing else, and where nothing was measured that is said by a null.
    assert {**cv, "unseen_map": None, "unseen": {}} == json.loads((run / "cv.json").read_text())


def test_the_yardstick_says_nothing_of_a_run_that_learns_from_other_images(run: Path, tmp_path: Path) -> None:
    params, other = tiny_params(), tmp_path / "run"
    shutil.copytree(run / "train", other / "train")
    table = pd.read_csv(run / "train" / "table.csv", dtype=str)
    table.loc[0, "scored"] = "0"
    table.to_csv(other / "train" / "table.csv", index=False)
    for name in ("folds.csv", "oof"):
        (other / name).symlink_to(run / name)
    unseen = tmp_path / "unseen.csv"
    found = pd.DataFrame({"cluster": ["dark"], "images": 24, "ap": [0.25]})
    write_unseen(unseen, settings_key(params.recipe, params.predict, params.decode, params.select), found)
    cv = evaluate_again(other, tmp_path, params, unseen)
    assert (cv["unseen_map"], cv["unseen"]) == (None, {})


def test_the_held_out_nuclei_are_those_that_were_scored(run: Path) -> None:
    scores = pd.read_csv(run / "scores.csv").set_index("image_id")["ap"]
    split = PreparedSplit.open(run / "train")
    for image_id, label_map in read_label_maps(run / "oof.csv", split.shapes()):
        assert score(split.label_map(image_id), label_map) == pytest.approx(scores[image_id], abs=1e-6)


def test_candidates_are_stored_with_their_worth_for_every_image(run: Path) -> None:
    store = CandidateStore(run / "candidates.npz")
    assert sorted(store) == PreparedSplit.open(run / "train").image_ids
    for image_id in store:
        features, worth = store.lesson(image_id)
        assert features.shape == (len(worth), len(FEATURES))
        assert ((worth >= 0) & (worth <= 1)).all()


@pytest.mark.parametrize("changes", [{"select__trees": 0}, {"select__max_pixels": 1}])
def test_without_candidates_one_decoding_finds_the_nuclei(run: Path, tmp_path: Path, changes: dict[str, int]) -> None:
    params = tiny_params(**changes)
    cv = evaluate_again(run, tmp_path, params)
    assert cv["cv_map"] == pytest.approx(cv["one_decoding_map"])
    files = tmp_path / "decoding.json", tmp_path / "trees.npz"
    finder = load_finder(*files, params.predict.scales, params.size, params.select)
    assert finder.trees is None
    assert finder.find(np.zeros((3, 20, 30, 3), np.uint8), 1.0).shape == (20, 30)


def test_how_well_sizes_were_estimated_is_reported(run: Path) -> None:
    cv = json.loads((run / "cv.json").read_text())
    assert 0 <= cv["size_error_octaves"] <= cv["size_error_octaves_p90"]


def test_native_sizes_need_no_estimate(archives: Path, tmp_path: Path) -> None:
    run_chain(archives, tmp_path, tiny_params(size__object_diameter_px=0.0))
    assert "size_error_octaves" not in json.loads((tmp_path / "cv.json").read_text())
    predictions = Predictions([tmp_path / "probabilities" / "main" / "0.npz"])
    assert {zoom for _, zoom in predictions.values()} == {1.0}


def test_a_test_set_in_shares_gets_the_same_nuclei(run: Path, tmp_path: Path) -> None:
    params, shared = tiny_params(data__test_shares=[0, 1]), tmp_path / "probabilities"
    for share in (0, 1):
        predict_testset.main(
            run / "test", run / "weights/main", run / "sizes/main", share, shared / f"{share}.npz", params
        )
    packs = [shared / "0.npz", shared / "1.npz"]
    ids = PreparedSplit.open(run / "test").image_ids
    assert [sorted(Predictions([pack])) for pack in packs] == [ids[::2], ids[1::2]]
    whole, parts = Predictions([run / "probabilities" / "main" / "0.npz"]), Predictions(packs)
    for image_id in ids:
        np.testing.assert_array_equal(parts[image_id][0], whole[image_id][0])
        assert parts[image_id][1] == whole[image_id][1]
    with pytest.raises(InputError, match=r"^share 2 is not one of data\.test_shares, \[0, 1\]"):
        predict_testset.main(run / "test", run / "weights/main", run / "sizes/main", 2, shared / "2.npz", params)


def test_history_has_a_row_per_epoch_with_a_look_at_the_held_out_fold(run: Path) -> None:
    history = pd.read_csv(run / "history" / "main" / "0.csv")
    assert history["step"].tolist() == [3, 6]
    assert history["val_map"].between(0, 1).all()


def test_the_report_is_one_file_that_asks_for_nothing(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<script src" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="https://' not in page


def test_nothing_half_written_is_left(run: Path) -> None:
    assert not list(run.rglob("*.partial"))


def test_the_same_seed_gives_the_same_bytes(archives: Path, run: Path, tmp_path: Path) -> None:
    again = tmp_path / run.name  # which the run card names
    run_chain(archives, again, tiny_params())
    # All but what says of itself that it differs from run to run, and the states to resume from.
    names = [path.relative_to(run) for path in run.rglob("*") if path.is_file() and "resume" not in path.parts]
    names.remove(Path("run.local.json"))
    assert {str(name) for name in names} >= {
        "submission.csv",
        "scores.csv",
        "run.json",
        "report.html",
        "oof/main/1.npz",
    }
    for name in names:
        # The report says where its submission lies.
        here, there = ((out / name).read_bytes().replace(bytes(out), b"") for out in (again, run))
        assert here == there, name


@pytest.mark.parametrize("kind", ["equal", "greedy"])
def test_several_members_make_one_submission(
    archives: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    params = with_members(tiny_params(ensemble__weights=kind), wide={"unet.width": 6, "size.object_diameter_px": 30.0})
    run_chain(archives, tmp_path, params)
    validate_submission(tmp_path / "submission.csv", PreparedSplit.open(tmp_path / "test").shapes())
    cv, weights = (
        json.loads((tmp_path / "cv.json").read_text()),
        read_weights(tmp_path / "decoding.json", params.member_ids),
    )
    assert {*cv["members"]} == {"main", "wide"}
    assert weights.on_all == {name: own["weight"] for name, own in cv["members"].items() if own["weight"]}
    both = {"main": 1, "wide": 1}
    assert kind == "greedy" or weights == (both, {0: both, 1: both})
    best = cv["members"][cv["best_member"]]["cv_map"]
    assert cv["gain"] == pytest.approx(cv["cv_map"] - best, abs=2e-6)
    assert cv["gain_low"] <= cv["gain"] <= cv["gain_high"]
    assert 0 <= cv["agreement"]["main, wide"] <= 1
    assert "beyond the best alone" in capsys.readouterr().out
    assert "main-0" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob(".*"))
    segmenter = load(tmp_path, params)  # a user's image goes through all that count
    assert [member.weight for member in segmenter.members] == [*weights.on_all.values()]


def test_a_member_alone_is_what_it_is_without_others(archives: Path, run: Path, tmp_path: Path) -> None:
    content = tiny_params().model_dump() | {
        "members": {"other": {}, "main": {"train.seed": 1}},
        "member_ids": ["other"],
    }
    run_chain(archives, tmp_path, Params.model_validate(content))
    for name in ("submission.csv", "scores.csv"):
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def test_without_a_test_set_prediction_and_submission_are_valid_and_empty(archives: Path, tmp_path: Path) -> None:
    run_chain(archives, tmp_path, tiny_params(data__test=None))
    assert (tmp_path / "submission.csv").read_text() == "ImageId,EncodedPixels\n"
    assert len(Predictions([tmp_path / "probabilities" / "main" / "0.npz"])) == 0
    assert json.loads((tmp_path / "run.json").read_text())["lb_map"] is None


def test_fewer_folds_ignore_the_files_of_the_dropped_one(archives: Path, tmp_path: Path) -> None:
    run_chain(archives, tmp_path, tiny_params(folds__ids=[0, 1, 2]))
    run_chain(archives, tmp_path, tiny_params())
    assert (tmp_path / "oof" / "main" / "2.npz").exists()
    assert sorted(json.loads((tmp_path / "cv.json").read_text())["folds"]) == ["0", "1"]
    assert not any("2.safetensors" in name for name in json.loads((tmp_path / "run.json").read_text())["digests"])


def test_training_refuses_a_fold_table_that_leaks_or_lacks_an_image(run: Path, tmp_path: Path) -> None:
    table = pd.read_csv(run / "folds.csv")
    for broken, message in (
        (table.iloc[1:], table["image_id"][0]),
        (table.assign(group="one", fold=[0, 1] * (len(table) // 2)), "one"),
    ):
        broken.to_csv(tmp_path / "folds.csv", index=False)
        with pytest.raises(InputError, match=message):
            train.main(
                run / "train", tmp_path / "folds.csv", 0, tmp_path / "0.safetensors", tmp_path / "0.csv",
                tmp_path / "resume", tiny_params(),
            )  # fmt: skip
    assert not (tmp_path / "0.safetensors").exists()


def load(folds: Path, params: Params) -> Segmenter:
    return load_segmenter(describe_run(folds, params))


def test_predict_writes_label_map_overlay_and_table(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "grey16.tif", rng.integers(0, 4000, (70, 50), dtype=np.uint16))
    tifffile.imwrite(
        tmp_path / "stack.tif", rng.integers(0, 255, (4, 40, 60), dtype=np.uint8), photometric="minisblack"
    )
    with zipfile.ZipFile(SAMPLE / "stage1_test.zip") as archive:
        (tmp_path / "real.png").write_bytes(archive.read(archive.namelist()[0]))
    params, paths = tiny_params(), [tmp_path / name for name in ("grey16.tif", "stack.tif", "real.png")]
    with progress_bar("predict", len(paths)) as bar:
        results = list(segment_files(paths, tmp_path / "out", load(run, params), params.housekeeping, bar))
    assert [each.name for each in results] == ["grey16", *(f"stack.page{n:03d}" for n in range(4)), "real"]
    for _, name, count, *_ in results:
        path = tmp_path / "out" / f"{name}.label_map.tif"
        label_map = tifffile.imread(path)
        table = pd.read_csv(str(path).replace("label_map.tif", "nuclei.csv"))
        assert len(table) == count == len(np.unique(label_map)) - (0 in label_map)
        for row in table.itertuples():
            assert (label_map == row.label).sum() == row.area_px
        assert Path(str(path).replace("label_map.tif", "overlay.png")).exists()


def test_predict_without_a_trained_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained run"):
        check_run(tmp_path / "folds")
