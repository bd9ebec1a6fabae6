"""The sheet shows the tiles that a training step is given, with the outlines of their labels; the command writes it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from skimage.draw import disk

from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.experiments.batch import GAP_PX, TRUE_RGB, draw_sheet
from pipeline.folds.training import start_training
from pipeline.images.prepare import prepare_split
from pipeline.images.splits import PreparedSplit
from pipeline.params import AugmentParams
from tests.tiny import tiny_params, tiny_source

# Tiles of 80 px, of which networks see 64, at native brightness and size.
PARAMS = tiny_params(
    contrast__stretch=False,
    contrast__density=False,
    size__object_diameter_px=0.0,
    train__start_crop_px=64,
    housekeeping__loader_workers=0,
)
SIDE = PARAMS.train.crop_px
NONE = AugmentParams(backend=None, effects={})
WEAK = AugmentParams(backend="device", effects={"flips": {}, "gamma": {"octaves": 0.5}, "noise": {"std": 0.05}})
COLOURED = AugmentParams(backend="device", effects={"color_matrix": {"std": 0.5}})


def recipe(augment=NONE):
    return PARAMS.recipe._replace(augment=augment)


def draw_discs(seed, side=80):
    """Return a dark grey image (H, W, 3) uint8 and the masks (H, W) uint8 of its brighter nuclei."""
    rng = np.random.default_rng(seed)
    masks = [np.zeros((side, side), np.uint8) for _ in range(4)]
    for mask, centre in zip(masks, [(20, 22), (22, 55), (54, 20), (56, 60)], strict=True):
        mask[disk(centre, rng.uniform(8, 12), shape=mask.shape)] = 255
    grey = np.where(np.max(masks, axis=0) > 0, 120 + 20 * seed, 20) + rng.integers(0, 20, (side, side))
    return grey.astype(np.uint8)[..., None].repeat(3, axis=2), masks


@pytest.fixture
def make_split(make_archive, data_params, housekeeping, tmp_path):
    """Return a function that prepares {image_id: (image, masks)} and returns the folder of the split."""

    def make(images, folder=tmp_path / "data" / "prepared" / "train"):
        entries = {f"{name}/images/{name}.png": image for name, (image, _) in images.items()}
        for name, (_, masks) in images.items():
            entries |= {f"{name}/masks/{number}.png": mask for number, mask in enumerate(masks)}
        make_archive(entries)
        folder.mkdir(parents=True)
        prepare_split(
            {"made": tiny_source("train.zip", "competition")}, tmp_path, folder, True, data_params, housekeeping
        )
        return folder

    return make


@pytest.fixture
def prepared(make_split):
    return make_split({f"i{seed}": draw_discs(seed) for seed in range(3)})


@pytest.fixture
def split(prepared):
    return PreparedSplit.open(prepared)


def tiles_of(sheet, columns):
    """Return the places of a sheet, row by row, and make sure that nothing but one grey lies between them."""
    step = SIDE + GAP_PX
    rows = (sheet.shape[0] - GAP_PX) // step
    assert sheet.shape == (GAP_PX + rows * step, GAP_PX + columns * step, 3)
    between = np.ones(sheet.shape[:2], bool)
    tiles = []
    for row in range(rows):
        for column in range(columns):
            place = np.s_[GAP_PX + row * step :, GAP_PX + column * step :]
            tiles.append(sheet[place][:SIDE, :SIDE])
            between[place][:SIDE, :SIDE] = False
    assert len(np.unique(sheet[between])) == 1
    return tiles


def on_outline(tile):
    return (tile == TRUE_RGB).all(axis=2)


def test_without_augmentation_a_tile_is_the_crop_with_outlines_on_its_labels(make_split):
    """Two squares side by side, and one that the crop cuts: it is outlined where it ends, and not where the crop does.

    The image is as large as a tile, so there is one tile, of which the middle 64 px are shown: from 8 on.
    """
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    squares = [np.s_[20:30, 20:30], np.s_[20:30, 30:40], np.s_[60:80, 50:60]]
    masks = [np.zeros((80, 80), np.uint8) for _ in squares]
    expected = image.copy()
    for mask, square in zip(masks, squares, strict=True):
        mask[square] = 255
    for square in squares[:2]:
        inside = expected[square][1:-1, 1:-1].copy()
        expected[square] = TRUE_RGB
        expected[square][1:-1, 1:-1] = inside
    expected[60, 50:60] = expected[60:, 50] = expected[60:, 59] = TRUE_RGB
    split = PreparedSplit.open(make_split({"one": (image, masks)}))
    for augment in (NONE, AugmentParams(backend="device", effects={})):
        (tile,) = tiles_of(draw_sheet(split, recipe(augment), 1, 0), columns=1)
        np.testing.assert_array_equal(tile, expected[8:72, 8:72])


def test_tiles_are_what_the_steps_of_a_training_are_given(split):
    trainer, feed, prepare = start_training(split, 0, recipe(WEAK), PARAMS.housekeeping)
    given = []

    def note(*batch):
        result = prepare(*batch)
        given.extend(result[0].mul(255).round().byte().permute(0, 2, 3, 1).numpy())
        return result

    for _, batch in zip(range(2), feed.batches_from(0), strict=False):
        trainer.take_step(batch, note)
    tiles = tiles_of(draw_sheet(split, recipe(WEAK), 4, PARAMS.train.seed), columns=2)
    assert len(given) == len(tiles) == 4
    for tile, image in zip(tiles, given, strict=True):
        outline = on_outline(tile)
        assert 0 < outline.mean() < 0.2
        np.testing.assert_array_equal(tile[~outline], image[~outline])


def test_a_seed_draws_the_same_sheet_and_another_one_another(split):
    first, again, other = (draw_sheet(split, recipe(WEAK), 4, seed) for seed in (1, 1, 2))
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (7, 3, 3)])
def test_there_are_as_many_tiles_as_asked_for_and_more_leave_the_first_as_they_are(split, count, columns, rows):
    """Batches are of two, so 5 and 7 tiles end within one; the places behind them are empty."""
    tiles = tiles_of(draw_sheet(split, recipe(WEAK), count, 3), columns)
    assert len(tiles) == columns * rows
    assert all(on_outline(tile).any() for tile in tiles[:count])
    assert all(len(np.unique(tile)) == 1 for tile in tiles[count:])
    for tile, longer in zip(tiles[:count], tiles_of(draw_sheet(split, recipe(WEAK), 9, 3), 3), strict=False):
        np.testing.assert_array_equal(tile, longer)


def test_a_recoloured_tile_has_colours(split):
    def colour(augment):
        """Return how far the channels lie apart, in the mean over all that is no outline."""
        tiles = np.concatenate(tiles_of(draw_sheet(split, recipe(augment), 4, 0), 2))
        return np.ptp(tiles[~on_outline(tiles)].astype(int), axis=1).mean()

    assert colour(NONE) == 0
    assert colour(COLOURED) > 10


@pytest.mark.parametrize(("count", "seed", "words"), [(0, 0, "--tiles is 0"), (257, 0, "1 to 256"), (1, -1, "is -1")])
def test_numbers_out_of_bounds_are_refused(split, count, seed, words):
    with pytest.raises(InputError, match=words):
        draw_sheet(split, recipe(), count, seed)


@pytest.fixture
def workspace(tmp_path, prepared, monkeypatch):
    content = json.loads(PARAMS.model_dump_json())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_rgb(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_the_command_writes_a_batch_of_the_parameters_at_hand(workspace, split, capsys):
    main(["show", "batch"])
    seed = PARAMS.train.seed
    assert capsys.readouterr().out == f"data/batch.png: 2 tiles of 64 px, seed {seed}\n"
    np.testing.assert_array_equal(read_rgb("data/batch.png"), draw_sheet(split, PARAMS.recipe, 2, seed))


def test_the_command_writes_over_its_own_sheet_alone(workspace, split):
    bytes_of = {}
    for seed in ("4", "5", "4"):
        main(["show", "batch", "--out", "mine.png", "--seed", seed, "--tiles", "3"])
        assert bytes_of.setdefault(seed, Path("mine.png").read_bytes()) == Path("mine.png").read_bytes()
    assert bytes_of["4"] != bytes_of["5"]
    cv2.imwrite("mine.png", read_rgb("mine.png"))
    theirs = Path("mine.png").read_bytes()
    with pytest.raises(SystemExit, match=r"^error: mine\.png: is there, and no sheet .* --out"):
        main(["show", "batch", "--out", "mine.png"])
    assert Path("mine.png").read_bytes() == theirs


def test_the_command_refuses_a_test_set(workspace, prepared):
    table = pd.read_csv(prepared / "table.csv").assign(nuclei=0)
    table.to_csv(prepared / "table.csv", index=False)
    with pytest.raises(SystemExit, match=r"^error: data/prepared/train: no nuclei are known .* --prepared$"):
        main(["show", "batch"])
    assert not Path("data/batch.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prepared", "nowhere"], "nowhere: no prepared images there; run `dvc repro prepare`"),
        (["--out", "sheet.jpg"], r"sheet\.jpg: the sheet is a PNG"),
        (["--out", "folder.png"], r"folder\.png: is there"),
        (["--tiles", "-3"], "--tiles is -3; give 1 to 256"),
        (["--seed", "2147483648"], "--seed is 2147483648; give 0 to 2147483647"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(workspace, arguments, words):
    Path("folder.png").mkdir()
    before = sorted(workspace.rglob("*"))
    with pytest.raises(SystemExit, match=f"^error: .*{words}") as stop:
        main(["show", "batch", *arguments])
    assert "\n" not in str(stop.value.code)
    assert sorted(workspace.rglob("*")) == before
