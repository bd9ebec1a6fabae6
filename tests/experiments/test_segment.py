"""The files that `predict` reads and writes, and its large images, against the plain ways to do the same."""

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from skimage.measure import regionprops_table
from skimage.segmentation import find_boundaries

from pipeline.errors import InputError
from pipeline.experiments.inference import load_folds, predict_large, predict_with
from pipeline.experiments.instances import load_finder
from pipeline.experiments.results import draw_outlines, measure_nuclei, write_nuclei, write_png
from pipeline.experiments.segment import read_images, segment_files
from pipeline.params import load_params
from tests.faults.load import draw_nuclei, lay_out_run


def blocks(shape=(130, 12), top=4):
    labels = np.random.default_rng(0).integers(0, top, shape)
    return np.kron(labels, np.ones((5, 5), int)).astype(np.int32)


def test_outlines_are_the_inner_boundaries_of_a_tall_image():
    label_map = blocks()
    image = np.full((*label_map.shape, 3), 7, np.uint8)
    draw_outlines(image, label_map)
    np.testing.assert_array_equal((image != 7).any(axis=2), find_boundaries(label_map, connectivity=1, mode="inner"))


@pytest.mark.parametrize("label_map", [blocks(), blocks((110, 20), 2000), np.zeros((300, 4), np.int32)])
def test_the_table_is_that_of_scikit_image(label_map):
    expected = pd.DataFrame(regionprops_table(label_map, properties=("label", "area", "centroid")))
    expected.columns = pd.Index(["label", "area_px", "row", "column"])
    expected = expected.astype({"area_px": int}).round(2).to_csv(index=False)
    assert measure_nuclei(label_map).round(2).to_csv(index=False) == expected


@pytest.mark.parametrize("size", [(1, 1), (257, 33), (512, 5)])
def test_a_png_comes_back(tmp_path, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], image)


@pytest.mark.parametrize(("count", "dtype"), [(3, np.uint16), (70_000, np.uint32)])
def test_a_label_map_comes_back(tmp_path, count, dtype):
    label_map = np.arange(300 * 250, dtype=np.int32).reshape(300, 250) % (count + 1)
    path = write_nuclei(tmp_path, "a", np.full((300, 250, 3), 90, np.uint8), label_map)
    read = tifffile.imread(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, label_map)
    assert len(pd.read_csv(tmp_path / "a.nuclei.csv")) == count


@pytest.mark.parametrize("kind", ["png", "rgb.tif", "grey.tif", "palette.tif"])
def test_images_are_read_to_be_written_on(tmp_path, kind):
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        cv2.imwrite(str(path), image[..., ::-1])
    elif kind == "rgb.tif":
        tifffile.imwrite(path, image)
    elif kind == "grey.tif":
        tifffile.imwrite(path, image[..., 0])
        image = image[..., :1].repeat(3, axis=2)
    else:
        table = np.random.default_rng(1).integers(0, 2**16, (3, 256), dtype=np.uint16)
        tifffile.imwrite(path, image[..., 0], photometric="palette", colormap=table)
        image = (table[:, image[..., 0]] >> 8).astype(np.uint8).transpose(1, 2, 0)
    ((_, read),) = read_images(path, 10**6)
    np.testing.assert_array_equal(read, image)
    assert read.flags.writeable


def test_a_tiff_of_another_codec_is_refused_with_the_cure(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint8))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(5)
    with pytest.raises(InputError, match=r"a\.tif: .*LZW.*uncompressed or with zlib"):
        list(read_images(tmp_path / "a.tif", 10**6))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, bad):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0.0, bad, 2.0]] * 3, np.float32))
    with pytest.raises(InputError, match="not finite"):
        list(read_images(tmp_path / "a.tif", 10**6))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose network needs no training, and which leaves images beyond 10,000 px to one decoding."""
    return lay_out_run(tmp_path_factory.mktemp("run"), seed=0, select__max_pixels=10_000)


def segment(run, paths, out):
    return dict(segment_files(paths, out, run / "params.yaml", run / "folds"))


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 0.7, 1.0, 1.4)])
def test_a_large_image_in_strips_is_the_whole(tmp_path, scales, monkeypatch):
    small = {"select__max_pixels": 10_000, "predict__tile_px": 96, "predict__overlap_px": 16}
    run = lay_out_run(tmp_path / "run", seed=1, predict__scales=scales, **small)
    params = load_params(run / "params.yaml")
    trained = load_folds(run / "folds" / "weights", run / "folds" / "sizes", params.folds.ids, params)
    finder = load_finder(run / "folds" / "decoding.json", run / "folds" / "candidates.npz", params)
    image = draw_nuclei(430, 150, seed=2) // 2
    ((_, probabilities, zoom),) = predict_with(trained, [("a", image)], params)
    expected = finder.find(probabilities, zoom)
    assert expected.max() > 5
    monkeypatch.setattr("pipeline.nuclei.decoding.STRIP_PX", 4000)
    found = finder.find_in_strips(predict_large(trained, image.copy(), params), image.shape[:2])
    np.testing.assert_array_equal(found, expected)
    tifffile.imwrite(tmp_path / "a.tif", image)
    ((path, count),) = segment(run, [tmp_path / "a.tif"], tmp_path / "out").items()
    np.testing.assert_array_equal(tifffile.imread(path), expected)
    assert count == expected.max()


def test_large_and_small_images_keep_their_order_and_faults_come_last(run, tmp_path):
    sides = {"a": 60, "b": 200, "c": 60, "d": 220, "e": 210, "f": 60}
    for name, side in sides.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", draw_nuclei(side, side, seed=side))
    (tmp_path / "b2.png").write_bytes(b"no image")
    (tmp_path / "c2.tif").write_bytes((tmp_path / "c.tif").read_bytes()[:100])
    paths = sorted(tmp_path.glob("*.*"))
    found = segment_files(paths, tmp_path / "out", run / "params.yaml", run / "folds")
    for (path, count), name in zip((next(found) for _ in sides), sides, strict=True):
        assert path.name == f"{name}.label_map.tif"
        assert count == tifffile.imread(path).max() > 0
    with pytest.raises(InputError, match=r"2 of 8 files .*b2\.png.*c2\.tif"):
        next(found)


def test_paths_are_looked_at_before_anything_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.experiments.segment.load_folds", None)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint8))
    for wrong, message in ((tmp_path, "a folder"), (tmp_path / "b.tif", "no such file"), (tmp_path / "a.png", "two")):
        with pytest.raises(InputError, match=message):
            segment(run, [tmp_path / "a.tif", wrong], tmp_path / "out")
