"""The studies' own arithmetic, and each of them whole on the sample with a few steps."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from pipeline.compose import compose_params
from pipeline.errors import InputError
from pipeline.params import load_params
from pipeline.studies import ablation, causes, examples, study, time_to_score, upsampling
from pipeline.unet.model import build_model
from tests.faults.workspace import make_archives
from tests.stages.test_pipeline import run_chain
from tests.tiny import tiny_params

ROOT = Path(__file__).resolve().parents[2]


def wave(cycles: int, amplitude: float, size: int = 128) -> np.ndarray:
    """Return a map (1, S, S) of a wave along the rows, which has amplitude^2 / 2 of energy per pixel."""
    return amplitude * np.cos(2 * np.pi * cycles * np.mgrid[:size, :size][1] / size)[None]


def board(stride: int) -> np.ndarray:
    """Return a smooth wave of energy 1/2 with one of energy 1/8 at the stride's frequency."""
    cycles = 128 // stride
    amplitude = np.sqrt(1 / 8) if stride == 2 else 0.5  # at the highest frequency every pixel is a peak
    return wave(12, 1.0) + wave(cycles, amplitude)


@pytest.mark.parametrize("stride", [2, 4])
def test_energy_at_the_stride_by_hand(stride: int) -> None:
    assert upsampling.stride_energy(board(stride), stride) == pytest.approx((1 / 8) / (1 / 2 + 1 / 8), rel=1e-3)
    assert upsampling.stride_energy(wave(12, 1.0), stride) < 1e-6


def test_the_multiples_of_a_stride_s_frequency_count() -> None:
    # 1/2 is twice 1/4, and no multiple of it.
    assert upsampling.stride_energy(board(2), 4) == pytest.approx(0.2, rel=1e-3)
    assert upsampling.stride_energy(board(4), 2) < 1e-6


def test_energy_of_constant_maps_is_none() -> None:
    assert upsampling.stride_energy(np.ones((2, 64, 64)), 2) == 0
    # A dead channel does not water down a living one.
    both = np.concatenate([board(2), np.zeros_like(board(2))])
    assert upsampling.stride_energy(both, 2) == pytest.approx(upsampling.stride_energy(board(2), 2))


def test_the_smooth_input_has_no_energy_at_the_strides() -> None:
    first = (upsampling.SMOOTH_PX - upsampling.WINDOW_PX) // 2
    window = slice(first, first + upsampling.WINDOW_PX)
    image = upsampling.smooth_image()[0, :1, window, window].double().numpy()
    assert all(upsampling.stride_energy(image, stride) < 1e-4 for stride in upsampling.STRIDES)


def test_smaller_sets_are_parts_of_larger_ones() -> None:
    table = pd.DataFrame({"image_id": [f"i{n}" for n in range(50)]})
    sets = [set(examples.choose_images(table, count, 0)["image_id"]) for count in (5, 10, 20, 50)]
    assert [len(one) for one in sets] == [5, 10, 20, 50]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    assert sets[0] != set(examples.choose_images(table, 5, 1)["image_id"])


def test_without_skips_the_encoder_s_maps_do_not_reach_the_decoder() -> None:
    params = load_params(ROOT / "params.yaml").unet
    torch.manual_seed(0)
    model = build_model(params, pretrained=False).eval()
    before = model(torch.rand(1, 3, 64, 64))
    examples.cut_skips(model)
    head = torch.zeros(1, 320, 2, 2)
    with torch.no_grad():
        pyramids = [
            [torch.rand(1, c, 64 // 2**n, 64 // 2**n) for n, c in enumerate((3, 16, 24, 40, 112))] for _ in "ab"
        ]
        first, second = (model.net.decoder([*maps, head]) for maps in pyramids)
    assert torch.equal(first, second)
    assert model(torch.rand(1, 3, 64, 64)).shape == before.shape


@pytest.mark.parametrize("lever", ablation.LEVERS)
def test_a_lever_changes_what_it_names_and_nothing_else(lever: str) -> None:
    params = load_params(ROOT / "params.yaml")
    for setting in (ablation.LEVERS[lever].without, ablation.LEVERS[lever].with_it):
        content, changed = params.model_dump(), ablation.change(params, setting.changes).model_dump()
        for name, value in setting.changes.items():
            section, key = name.split(".")
            assert changed[section].pop(key) == value
            content[section].pop(key)
        assert changed == content


def test_a_lever_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(KeyError, match=r"size\.no_such"):
        ablation.change(load_params(ROOT / "params.yaml"), {"size.no_such": 1})


def test_a_figure_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        for folder in ("one", "two"):
            figure = Figure()
            figure.add_subplot().plot([0, 1], [1, 0], marker="o")
            study.keep_figure(tmp_path / folder / f"figure.{suffix}", figure)
        one, two = ((tmp_path / folder / f"figure.{suffix}").read_bytes() for folder in ("one", "two"))
        assert one == two


@pytest.mark.parametrize(("score", "seconds"), [(0.1, 10), (0.2, 10), (0.25, 15), (0.3, 20), (0.35, 30), (0.5, np.nan)])
def test_a_score_is_reached_between_two_looks(score: float, seconds: float) -> None:
    curve = pd.DataFrame({"seconds": [10, 20, 30], "val_map": [0.2, 0.3, 0.35]})
    np.testing.assert_allclose(time_to_score.seconds_to(curve, score), seconds)


@pytest.mark.parametrize("name", time_to_score.SETTINGS)
def test_every_setting_of_time_to_score_composes(name: str) -> None:
    params = time_to_score.compose(name, 300)
    assert params.train.epochs * params.train.steps_per_epoch == 300
    plain = time_to_score.compose("base", 300)
    assert (params == plain) == (name == "base")


def test_the_default_is_what_won() -> None:
    won, default = time_to_score.compose(time_to_score.CHOSEN, 300), compose_params(["data=full", "train=cpu"])
    assert (won.unet, won.size.object_diameter_px) == (default.unet, default.size.object_diameter_px)
    sizes = ("batch", "tile_px", "crop_px", "start_crop_px", "lr")
    assert [getattr(won.train, name) for name in sizes] == [getattr(default.train, name) for name in sizes]


def test_every_setting_of_the_studies_composes() -> None:
    default = study.compose("examples")
    params = {name: study.compose("examples", setting.overrides) for name, setting in examples.SETTINGS.items()}
    assert params["default"] == default
    assert params["no augmentation"].augment.backend is None
    assert params["no skip connections"] == default
    assert params["no ImageNet weights"].unet.weights is None  # type: ignore[attr-defined]
    kinds = [study.compose("upsampling", [f"unet.upsampling={kind}"]).unet for kind in upsampling.KINDS]
    assert [kind.upsampling for kind in kinds] == list(upsampling.KINDS)  # type: ignore[attr-defined]


def test_halves_split_no_group() -> None:
    groups = pd.Series([f"g{n // 3}" for n in range(31)])
    halves = study.halve(groups)
    assert pd.Series(halves).groupby(groups).nunique().max() == 1
    assert abs(halves.mean() - 0.5) < 0.1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout of a finished run."""
    params, run, home = tiny_params(), tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("home")
    make_archives(run / "archives")
    run_chain(run / "archives", run, params)
    (home / "data" / "prepared").mkdir(parents=True)
    (home / "folds").symlink_to(run)
    (home / "data" / "prepared" / "train").symlink_to(run / "train")
    (home / "params.yaml").write_text(params.model_dump_json())
    return home


def test_levers_are_compared_on_a_finished_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "PARTS", 2)  # of a fold of four images
    compared = ablation.Study(finished)
    rows = [compared.compare(lever) for lever in ("second_level", "zooms", "size", "true_size")]
    held_out = pd.read_csv(finished / "folds" / "folds.csv").query("fold == 0")
    for row in rows:
        assert row["images"] == len(held_out)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["difference"] == pytest.approx(row["with"] - row["without"])
    # Two sides of one setting: what a lever without is, another with it may be.
    assert rows[0]["with"] == rows[1]["with"]
    assert rows[2]["with"] == rows[3]["without"]


def test_causes_are_found_of_a_finished_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["causes", "--run", str(finished)])
    monkeypatch.setattr(causes, "PATH", tmp_path / "causes.csv")
    causes.main()
    table = pd.read_csv(tmp_path / "causes.csv").set_index(["image_type", "cause", "size"]).sort_index()
    scores = pd.read_csv(finished / "folds" / "scores.csv")
    assert table.loc[causes.ALL, "images"].unique().tolist() == [len(scores)]
    assert table["gain"].between(0, 1).all()
    # A type's gains, each as often as it has images, are those of all.
    means = table["gain"].unstack("image_type")
    share = scores["image_type"].value_counts(normalize=True)
    assert (means[share.index] * share).sum(axis=1).to_numpy() == pytest.approx(means[causes.ALL], abs=1e-3)


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stage1_train\.zip: no such archive"):
        study.load_data(tmp_path, tmp_path / "scratch", study.compose("examples"))


@pytest.mark.parametrize(
    "command", ["upsampling", "examples", "stains", "acquisitions", "unseen --clusters dark4",
                "expected --out known.csv", "time_to_score train", "ablation", "cases", "causes"],
)  # fmt: skip
def test_a_study_says_in_one_line_what_is_wrong(command: str, tmp_path: Path) -> None:
    name, *arguments = command.split()
    where = ["--run" if name in ("ablation", "cases", "causes") else "--data", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.studies.{name}", *arguments, *where],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    images = "data/prepared/train/images.npz: "
    missing = {"ablation": "params.yaml: ", "cases": images, "causes": images}.get(
        name, "stage1_train.zip: no such archive"
    )
    assert done.stderr.strip().startswith(f"error: {tmp_path}/{missing}")
    assert "Traceback" not in done.stderr


def test_a_number_of_steps_is_one_above_0(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["study", "--steps", "0"])
    with pytest.raises(SystemExit):
        upsampling.main()
    assert "no whole number above 0" in capsys.readouterr().err


@pytest.mark.timeout(600)
@pytest.mark.parametrize("module", [upsampling, examples], ids=["upsampling", "examples"])
def test_a_study_runs_whole_and_goes_on_where_it_was(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data", str(ROOT / "data/sample"), "--scratch", str(tmp_path / "scratch"), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["study", *arguments, "--steps", "2"])
    monkeypatch.setattr(examples, "COUNTS", (5, 160))
    monkeypatch.setattr(examples, "DRAWS", 1)
    monkeypatch.setattr(
        examples, "SETTINGS", {name: examples.SETTINGS[name] for name in ("default", "no skip connections")}
    )
    monkeypatch.setattr(upsampling, "KINDS", ("transposed", "nearest"))
    module.main()
    name = module.__name__.rsplit(".", 1)[-1]
    table = pd.read_csv(tmp_path / f"{name}.csv")
    assert table["ap"].between(0, 1).all()
    if module is examples:  # the sample has fewer images than the larger number
        assert sorted(set(table["images"])) == [
            5,
            len(study.load_data(ROOT / "data/sample", tmp_path / "scratch", study.compose("examples")).outside(0)),
        ]
    assert list(tmp_path.glob(f"{name}.*[gG]"))
    scratch = tmp_path / "scratch"

    def list_made() -> list[tuple[Path, int]]:
        found = [*scratch.glob("checkpoints/*/*/*.pt"), *scratch.glob("scores/*")]
        return sorted((path, path.stat().st_mtime_ns) for path in found)

    networks = {path: path.read_bytes() for path in scratch.glob("networks/*")}
    made = list_made()
    assert len(made) > len(networks) > 1
    module.main()
    assert list_made() == made
    assert {path: path.read_bytes() for path in scratch.glob("networks/*")} == networks
    again = pd.read_csv(tmp_path / f"{name}.csv")
    pd.testing.assert_frame_equal(*(one.drop(columns="step_s", errors="ignore") for one in (table, again)))
