"""The files that `predict` reads and writes, and its large images, against the plain ways to do the same."""

import shutil
from contextlib import contextmanager
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from skimage.measure import regionprops_table
from skimage.segmentation import find_boundaries

from pipeline.errors import InputError
from pipeline.folds.prediction import predict_estimated, predict_large
from pipeline.nuclei import decoding
from pipeline.params import load_params
from pipeline.predict.results import WRITERS, draw_outlines, measure_nuclei, write_nuclei, write_png
from pipeline.predict.segment import check_paths, check_run, load_segmenter, read_images, segment_files
from tests.faults.load import draw_nuclei, lay_out_run


def blocks(shape=(130, 12), top=4):
    labels = np.random.default_rng(0).integers(0, top, shape)
    return np.kron(labels, np.ones((5, 5), int)).astype(np.int32)


class NotedBar:
    """Keeps what a bar was told: what is done, and what more there is to do."""

    def __init__(self, done, more=None):
        self._done, self._more = done, [] if more is None else more

    def __call__(self, amount):
        self._done.append(amount)

    def expect(self, more):
        self._more.append(more)


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


def load_run(run):
    """Return what finds the nuclei of a run, and its parameters."""
    params = load_params(run / "params.yaml")
    parts = (params.contrast, params.unet, params.runtime, params.size, params.predict, params.select)
    return load_segmenter(run / "folds", params.folds.ids, *parts), params


def segment(run, paths, out):
    segmenter, params = load_run(run)
    return segment_files(paths, out, segmenter, params.housekeeping)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 0.7, 1.0, 1.4)])
def test_a_large_image_in_strips_is_the_whole(tmp_path, scales, monkeypatch):
    small = {"select__max_pixels": 10_000, "predict__tile_px": 96, "predict__overlap_px": 16}
    run = lay_out_run(tmp_path / "run", seed=1, predict__scales=scales, **small)
    segmenter, params = load_run(run)
    settings = (params.contrast, params.size, params.predict, segmenter.runtime)
    image = draw_nuclei(430, 150, seed=2) // 2
    ((_, probabilities, zoom),) = predict_estimated(segmenter.folds, [("a", image)], *settings)
    expected = segmenter.finder.find(probabilities, zoom)
    assert expected.max() > 5
    decoded = []

    def watch(probabilities, *rest):
        decoded.append(len(probabilities))
        return decode_closed(probabilities, *rest)

    decode_closed = decoding._decode_closed
    monkeypatch.setattr(decoding, "_decode_closed", watch)
    monkeypatch.setattr("pipeline.folds.finder.decode_strips", partial(decoding.decode_strips, strip_px=4000))
    strips = predict_large(segmenter.folds, image.copy(), *settings)
    found = segmenter.finder.find_in_strips(strips, image.shape[:2])
    assert len(decoded) > 3
    assert max(decoded) < len(image)
    np.testing.assert_array_equal(found, expected)
    tifffile.imwrite(tmp_path / "a.tif", image)
    ((path, count),) = segment(run, [tmp_path / "a.tif"], tmp_path / "out")
    np.testing.assert_array_equal(tifffile.imread(path), expected)
    assert count == expected.max()


def test_large_and_small_images_keep_their_order_and_faults_come_last(run, tmp_path, monkeypatch):
    done = []

    @contextmanager
    def note_progress(title, total):
        assert (title, total) == ("predict", 8)
        yield NotedBar(done)

    monkeypatch.setattr("pipeline.predict.segment.progress_bar", note_progress)
    sides = {"a": 60, "b": 200, "c": 60, "d": 220, "e": 210, "f": 60}
    for name, side in sides.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", draw_nuclei(side, side, seed=side))
    (tmp_path / "b2.png").write_bytes(b"no image")
    (tmp_path / "c2.tif").write_bytes((tmp_path / "c.tif").read_bytes()[:100])
    paths = sorted(tmp_path.glob("*.*"))
    found = segment(run, paths, tmp_path / "out")
    for (path, count), name in zip((next(found) for _ in sides), sides, strict=True):
        assert path.name == f"{name}.label_map.tif"
        assert count == tifffile.imread(path).max() > 0
    with pytest.raises(InputError, match=r"2 of 8 files .*b2\.png.*c2\.tif"):
        next(found)
    # The bar moves by parts of an image, and by eight files in all: two were no image.
    assert sum(done) == pytest.approx(8)
    assert 0 < min(done) < 1


def test_the_bar_expects_every_page_of_a_stack(run, tmp_path, monkeypatch):
    done, more = [], []

    @contextmanager
    def note_progress(_title, _total):
        yield NotedBar(done, more)

    monkeypatch.setattr("pipeline.predict.segment.progress_bar", note_progress)
    tifffile.imwrite(
        tmp_path / "stack.tif",
        np.stack([draw_nuclei(60, 60, seed=n)[..., 0] for n in range(3)]),
        photometric="minisblack",
    )
    assert len(list(segment(run, [tmp_path / "stack.tif"], tmp_path / "out"))) == 3
    assert sum(more) == 2
    assert sum(done) == pytest.approx(3)


def test_wrong_paths_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint8))
    check_paths([tmp_path / "a.tif"])
    for wrong, message in ((tmp_path, "a folder"), (tmp_path / "b.tif", "no such file"), (tmp_path / "a.png", "two")):
        with pytest.raises(InputError, match=message):
            check_paths([tmp_path / "a.tif", wrong])


@pytest.mark.parametrize("missing", ["weights", "sizes", "candidates.npz", "decoding.json"])
def test_a_folder_without_a_run_is_refused_with_the_cure(run, tmp_path, missing):
    check_run(run / "folds")
    shutil.copytree(run / "folds", tmp_path / "folds", ignore=shutil.ignore_patterns(missing))
    with pytest.raises(InputError, match=r"no trained run.*--run"):
        check_run(tmp_path / "folds")


def test_an_image_gets_a_file_from_every_writer(tmp_path, monkeypatch):
    """One more format is one more entry; it sees the image before the overlay is drawn on it."""
    seen = []

    def write_count(path, image, label_map):
        seen.append(image.copy())
        path.write_text(f"{label_map.max()}")

    monkeypatch.setattr("pipeline.predict.results.WRITERS", {".count.txt": write_count, **WRITERS})
    image, label_map = np.full((20, 30, 3), 200, np.uint8), np.zeros((20, 30), np.int32)
    label_map[5:9, 5:9], label_map[12:16, 12:16] = 1, 2
    path = write_nuclei(tmp_path / "out", "a", image.copy(), label_map)
    assert path.name == "a.count.txt"
    assert path.read_text() == "2"
    assert {file.name for file in path.parent.iterdir()} == {
        *("a.count.txt", "a.label_map.tif", "a.nuclei.csv", "a.overlay.png"),
    }
    np.testing.assert_array_equal(seen[0], image)
    overlay = cv2.imread(str(path.parent / "a.overlay.png"))[..., ::-1]
    assert (overlay[5, 5] != 200).any()
    assert (overlay[0, 0] == 200).all()


def test_a_writer_that_fails_leaves_no_half_file(tmp_path, monkeypatch):
    def fail(path, *_):
        path.write_bytes(b"half")
        raise InputError("no room")

    monkeypatch.setattr("pipeline.predict.results.WRITERS", {".half": fail})
    with pytest.raises(InputError, match="no room"):
        write_nuclei(tmp_path / "out", "a", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.int32))
    assert list((tmp_path / "out").iterdir()) == []
