"""The files that `predict` reads and writes, and its large images, against the plain ways to do the same."""

import errno
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from skimage.measure import regionprops_table
from skimage.segmentation import find_boundaries

from pipeline.commands.prediction import describe_run
from pipeline.errors import InputError
from pipeline.folds.members import predict_large
from pipeline.folds.prediction import predict_estimated
from pipeline.images.contrast import Shown, brighten_image, find_contrast
from pipeline.images.image_file import read_images
from pipeline.nuclei import decoding
from pipeline.params import load_params
from pipeline.predict import reading as reading_module
from pipeline.predict import segment as segment_module
from pipeline.predict.results import WRITERS, draw_outlines, measure_nuclei, write_nuclei, write_png
from pipeline.predict.segment import load_segmenter, segment_files
from pipeline.predict.shards import list_faults
from pipeline.progress import progress_bar
from pipeline.unet.runtime import Runtime
from tests.faults.load import draw_nuclei, lay_out_run

_PREDICT = segment_module._predict


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
    ((_, read, _),) = read_images(path, 10**6)
    np.testing.assert_array_equal(read, image)
    assert read.flags.writeable


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, bad):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0.0, bad, 2.0]] * 3, np.float32))
    with pytest.raises(InputError, match="not finite"):
        list(read_images(tmp_path / "a.tif", 10**6))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose network needs no training, and which leaves images beyond 10,000 px to one decoding."""
    return lay_out_run(tmp_path_factory.mktemp("run"), seed=0, select__max_pixels=10_000, size__steps=0)


def load_run(run):
    """Return what finds the nuclei of a run, and its parameters."""
    params = load_params(run / "params.yaml")
    return load_segmenter(describe_run(run / "folds", params)), params


def renumber(label_map):
    """Return the label map with ids in the order of their first pixels."""
    ids, firsts, places = np.unique(label_map, return_index=True, return_inverse=True)
    ranks = np.zeros(len(ids), int)
    ranks[ids > 0] = firsts[ids > 0].argsort().argsort() + 1
    return ranks[places].reshape(label_map.shape)


def segment(run, paths, out):
    segmenter, params = load_run(run)
    return find_all(paths, out, segmenter, params.housekeeping)


def find_all(paths, out, segmenter, housekeeping, channel=None):
    """Yield each label map's path and number of nuclei, and raise at the end what went wrong with others."""
    faults = []
    with progress_bar("predict", len(paths)) as bar:
        for outcome in segment_files(paths, out, segmenter, housekeeping, bar, channel):
            if outcome.fault:
                faults.append(outcome.fault)
            else:
                yield out / f"{outcome.name}.label_map.tif", outcome.nuclei
    if faults:
        raise list_faults(faults, len(paths))


@pytest.mark.parametrize(("scales", "stained"), [((1.0,), False), ((0.5, 0.7, 1.0, 1.4), False), ((1.0,), True)])
def test_a_large_image_in_strips_is_the_whole(tmp_path, scales, stained, monkeypatch):
    small = {"select__max_pixels": 10_000, "predict__tile_px": 96, "predict__overlap_px": 16}
    run = lay_out_run(tmp_path / "run", seed=1, predict__scales=scales, **small)
    segmenter, params = load_run(run)
    settings = (params.contrast, params.size, params.predict, segmenter.runtime)
    image = draw_nuclei(430, 150, seed=2) // 2
    image = 255 - image * np.array([1, 1, 0], np.uint8) if stained else image
    ((_, probabilities, zoom),) = predict_estimated(segmenter.members[0].folds, [("a", image)], *settings)
    expected = segmenter.finder.find(probabilities, zoom)
    assert expected.max() > 5
    decoded = []

    def watch(probabilities, *rest):
        decoded.append(len(probabilities))
        return decode_closed(probabilities, *rest)

    decode_closed = decoding._decode_closed
    monkeypatch.setattr(decoding, "_decode_closed", watch)
    monkeypatch.setattr("pipeline.folds.finder.decode_strips", partial(decoding.decode_strips, strip_px=4000))
    contrast = find_contrast(image, params.contrast)
    assert contrast.as_density == stained
    seen = Shown(image, contrast)
    strips = predict_large(segmenter.members, [seen], [zoom], segmenter.runtime)
    found = segmenter.finder.find_in_strips(strips, image.shape[:2])
    assert len(decoded) > 3
    assert max(decoded) < len(image)
    # A nucleus that the end of a strip cuts gets its number with those of the next strip.
    np.testing.assert_array_equal(renumber(found), renumber(expected))
    tifffile.imwrite(tmp_path / "a.tif", image)
    ((path, count),) = segment(run, [tmp_path / "a.tif"], tmp_path / "out")
    np.testing.assert_array_equal(tifffile.imread(path), found)
    assert count == expected.max()
    # People are shown the image, and not what networks see of it.
    overlay = cv2.cvtColor(cv2.imread(str(tmp_path / "out" / "a.overlay.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(overlay[expected == 0], brighten_image(image)[0][expected == 0])


def test_large_and_small_images_keep_their_order_and_faults_come_last(run, tmp_path, monkeypatch):
    done = []

    @contextmanager
    def note_progress(title, total):
        assert (title, total) == ("predict", 8)
        yield NotedBar(done)

    monkeypatch.setitem(globals(), "progress_bar", note_progress)
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
    with pytest.raises(InputError, match=r"2 images are left out.* 8 files.*\n.*/b2\.png: .*\n.*/c2\.tif: "):
        next(found)
    # The bar moves by eight files in all: two were no image.
    assert sum(done) == pytest.approx(8)


def test_an_image_is_written_and_counted_before_the_next_is_read(run, tmp_path, monkeypatch):
    """On a CPU, however many go through the networks at once: whoever stops after one has that one."""
    done, read = [], []

    @contextmanager
    def note_progress(_title, _total):
        yield NotedBar(done)

    def note_read(path, *rest):
        read.append(path.name)
        return read_images(path, *rest)

    monkeypatch.setitem(globals(), "progress_bar", note_progress)
    monkeypatch.setattr("pipeline.predict.reading.read_images", note_read)
    out, paths = tmp_path / "out", draw_files(tmp_path, "abc")
    found = segment(run, paths, out)
    next(found)
    assert read == ["a.png"]
    assert sum(done) == pytest.approx(1)
    assert names_in(out) == results_of("a")
    found.close()
    assert names_in(out) == results_of("a")


def draw_files(folder, names, side=60):
    """Write an image of nuclei for each name, and return their paths."""
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / f"{name}.png"), draw_nuclei(side, side, seed=number))
    return [folder / f"{name}.png" for name in names]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def results_of(names):
    return sorted(f"{name}{suffix}" for name in names for suffix in WRITERS)


def on_a_gpu(monkeypatch, run):
    """Return the run's segmenter, which takes this CPU for a GPU: its networks stay where they are."""
    segmenter, params = load_run(run)
    monkeypatch.setattr("pipeline.predict.segment._predict", lambda images, one: _PREDICT(images, on_cpu(one)))
    gpu = Runtime(torch.device("cuda"), "fp32", channels_last=False)
    return replace(
        segmenter, runtime=gpu, predict=params.predict.model_copy(update={"batch": 3, "tile_px": 64})
    ), params


def on_cpu(segmenter):
    return replace(segmenter, runtime=Runtime(torch.device("cpu"), "fp32", channels_last=False))


def test_a_gpu_sees_neighbours_of_one_shape_together_as_many_as_go_through_it_at_once(run, tmp_path, monkeypatch):
    segmenter, params = on_a_gpu(monkeypatch, run)
    paths = draw_files(tmp_path, "abcd") + draw_files(tmp_path, "e", side=50) + draw_files(tmp_path, "f")
    groups, whole = [], segment_module._predict_shared
    monkeypatch.setattr(
        "pipeline.predict.segment._predict_shared",
        lambda group, one: groups.append("".join(each.name for each in group)) or whole(group, one),
    )
    found = find_all(paths, tmp_path / "out", segmenter, params.housekeeping)
    next(found)
    assert groups == ["abc"]
    assert names_in(tmp_path / "out") == results_of("a")
    list(found)
    assert groups == ["abc", "d", "e", "f"]
    assert names_in(tmp_path / "out") == results_of("abcdef")
    expected = dict(segment(run, paths, tmp_path / "alone"))
    for path in expected:
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / path.name), tifffile.imread(path))


def test_images_that_fail_together_on_a_gpu_are_seen_alone(run, tmp_path, monkeypatch):
    segmenter, params = on_a_gpu(monkeypatch, run)

    def fail_at_b(images, one):
        if "b" in [name for name, _ in images]:
            raise RuntimeError("CUDA out of memory")
        return _PREDICT(images, on_cpu(one))

    monkeypatch.setattr("pipeline.predict.segment._predict", fail_at_b)
    found = find_all(draw_files(tmp_path, "abc"), tmp_path / "out", segmenter, params.housekeeping)
    assert [path.name[0] for path, _ in (next(found), next(found))] == ["a", "c"]
    with pytest.raises(InputError, match=r"^\S*/b\.png: memory ran out \(CUDA out of memory\)"):
        next(found)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("read_images", MemoryError()),
        ("read_images", PermissionError(errno.EACCES, "Permission denied")),
        ("_find_nuclei", RuntimeError("odd")),
        ("_find_nuclei", MemoryError()),
        ("write_nuclei", KeyError("x")),
        ("write_nuclei", InputError("b: mend this")),
    ],
)
def test_what_goes_wrong_with_one_image_is_its_own_fault(run, tmp_path, monkeypatch, where, error):
    module = reading_module if where == "read_images" else segment_module
    done, usual = [], getattr(module, where)

    @contextmanager
    def note_progress(_title, _total):
        yield NotedBar(done)

    def fail_at_b(*arguments):
        names = [one if isinstance(one, str) else getattr(one, "name", None) for one in arguments]
        if "b" in names or "b.png" in names:
            raise error
        return usual(*arguments)

    monkeypatch.setitem(globals(), "progress_bar", note_progress)
    monkeypatch.setattr(module, where, fail_at_b)
    out, found = tmp_path / "out", []
    with pytest.raises(InputError, match=r"^\S*/b\.png: ") as fault:
        found.extend(segment(run, draw_files(tmp_path, "abc"), out))
    assert ("memory ran out" if isinstance(error, MemoryError) else error.args[-1]) in str(fault.value)
    assert names_in(out) == results_of("ac")
    assert sum(done) == pytest.approx(3)


def test_a_page_that_fails_is_named_and_the_others_are_done(run, tmp_path, monkeypatch):
    usual = segment_module._find_nuclei

    def fail_at_1(opened, *rest):
        if opened.name == "s.page001":
            raise RuntimeError("odd")
        return usual(opened, *rest)

    monkeypatch.setattr("pipeline.predict.segment._find_nuclei", fail_at_1)
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((3, 20, 20), np.uint8), photometric="minisblack")
    with pytest.raises(InputError, match=r"/s\.tif: s\.page001: fails with RuntimeError \(odd\); save it anew"):
        list(segment(run, [tmp_path / "s.tif"], tmp_path / "out"))
    assert names_in(tmp_path / "out") == results_of(["s.page000", "s.page002"])


def test_a_large_image_that_fails_in_the_middle_counts_as_one(run, tmp_path, monkeypatch):
    done, usual = [], segment_module.predict_large

    @contextmanager
    def note_progress(_title, _total):
        yield NotedBar(done)

    def break_off(*arguments):
        yield next(usual(*arguments))[:40]
        raise RuntimeError("half of it")

    monkeypatch.setitem(globals(), "progress_bar", note_progress)
    monkeypatch.setattr("pipeline.predict.segment.predict_large", break_off)
    with pytest.raises(InputError, match=r"a\.png: fails with RuntimeError \(half of it\)"):
        list(segment(run, draw_files(tmp_path, "a", side=200), tmp_path / "out"))
    assert done == pytest.approx([0.2, 0.8])


def test_an_interruption_stops_all_and_leaves_what_was_counted(run, tmp_path, monkeypatch):
    done, usual = [], segment_module._find_nuclei

    @contextmanager
    def note_progress(_title, _total):
        yield NotedBar(done)

    def stop_at_b(opened, *rest):
        if opened.name == "b":
            raise KeyboardInterrupt
        return usual(opened, *rest)

    monkeypatch.setitem(globals(), "progress_bar", note_progress)
    monkeypatch.setattr("pipeline.predict.segment._find_nuclei", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
        list(segment(run, draw_files(tmp_path, "abc"), tmp_path / "out"))
    assert names_in(tmp_path / "out") == results_of("a")
    assert sum(done) == pytest.approx(1)


def test_results_that_cannot_be_written_are_their_image_s_fault(run, tmp_path):
    """A folder has the name of one, and a name has no room for its suffix."""
    long = "l" * 248
    paths, out = draw_files(tmp_path, ["a", "b", long, "z"]), tmp_path / "out"
    (out / "b.label_map.tif").mkdir(parents=True)
    found = []
    with pytest.raises(InputError, match=r":\n.*/b\.png: .* \(Is a directory\); .*\n.*l\.png: .*too long\); shorten"):
        found.extend(segment(run, paths, out))
    assert [path.name for path, _ in found] == ["a.label_map.tif", "z.label_map.tif"]
    assert not list(out.glob(".*"))


def test_a_full_disk_is_said_of_each_image(run, tmp_path, monkeypatch):
    def fill(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.predict.results.WRITERS", {**WRITERS, ".overlay.png": fill})
    with pytest.raises(InputError) as fault:
        list(segment(run, draw_files(tmp_path, "abc", side=20), tmp_path / "out"))
    lines = str(fault.value).splitlines()
    assert lines[0] == "3 images are left out; the others of 3 files are done:"
    assert len(lines) == 4
    for name, line in zip("abc", lines[1:], strict=True):
        assert f"{name}.png: " in line
        assert "cannot be written (No space left on device); make room" in line
    assert names_in(tmp_path / "out") == []


def test_the_channel_is_asked_of_every_file(run, tmp_path, monkeypatch):
    asked = []

    def note_channel(path, _, channel):
        asked.append(channel)
        return read_images(path, 10**6)

    monkeypatch.setattr("pipeline.predict.reading.read_images", note_channel)
    segmenter, params = load_run(run)
    list(find_all(draw_files(tmp_path, "ab"), tmp_path / "out", segmenter, params.housekeeping, channel=2))
    assert asked == [2, 2]


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("size", "object_diameter_px", "was 28.0 and is 60.0"),
        ("contrast", "stretch", "was true and is false"),
        ("contrast", "density", "was true and is false"),
        ("unet", "width", "was 2 and is 4"),
        ("targets", "distance_px", "was 8 and is 3"),
    ],
)
def test_a_params_yaml_of_another_training_is_refused(run, tmp_path, name, key, values):
    shutil.copytree(run, tmp_path / "run")
    content = yaml.safe_load((run / "params.yaml").read_text())
    content[name][key] = json.loads(values.split()[-1])
    (tmp_path / "run" / "params.yaml").write_text(yaml.safe_dump(content))
    expected = rf"weights/main/0\.safetensors: .*{name}\.{key} {values}; restore the params\.yaml"
    with pytest.raises(InputError, match=expected):
        load_run(tmp_path / "run")


def test_the_bar_expects_every_page_of_a_stack(run, tmp_path, monkeypatch):
    done, more = [], []

    @contextmanager
    def note_progress(_title, _total):
        yield NotedBar(done, more)

    monkeypatch.setitem(globals(), "progress_bar", note_progress)
    tifffile.imwrite(
        tmp_path / "stack.tif",
        np.stack([draw_nuclei(60, 60, seed=n)[..., 0] for n in range(3)]),
        photometric="minisblack",
    )
    assert len(list(segment(run, [tmp_path / "stack.tif"], tmp_path / "out"))) == 3
    assert sum(more) == 2
    assert sum(done) == pytest.approx(3)


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


def test_all_results_are_there_where_the_label_map_is(tmp_path, monkeypatch):
    seen = []

    def fail(path, *_):
        seen.append(sorted(other.name for other in (tmp_path / "out").glob("a.*")))
        raise InputError("no room")

    monkeypatch.setattr("pipeline.predict.results.WRITERS", {**WRITERS, ".last": fail})
    with pytest.raises(InputError, match="no room"):
        write_nuclei(tmp_path / "out", "a", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.int32))
    assert seen == [[]]
    assert list((tmp_path / "out").iterdir()) == []


def test_channels_are_explained_once(run, tmp_path, capsys):
    stains = np.stack([draw_nuclei(40, 40, seed=i)[..., 0] for i in range(3)])
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", stains, imagej=True, metadata={"axes": "CYX"})
    files = [tmp_path / "a.tif", tmp_path / "b.tif"]
    assert len(list(segment(run, files, tmp_path / "out"))) == 6
    assert capsys.readouterr().err.count("3 channels, each an image of its own; `--channel N` takes one") == 1
    segmenter, params = load_run(run)
    assert len(list(find_all(files, tmp_path / "one", segmenter, params.housekeeping, channel=1))) == 2
    assert "channels" not in capsys.readouterr().err
    assert "a.page001.label_map.tif" in names_in(tmp_path / "one")


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize(("zoom", "word"), [(0.0625, "larger"), (4.0, "smaller"), (1.0, None)])
def test_a_size_at_the_end_of_the_zooms_is_said(run, tmp_path, monkeypatch, capsys, zoom, word, is_large):
    for module in ("pipeline.folds.prediction", "pipeline.predict.segment"):
        monkeypatch.setattr(f"{module}.find_zoom", lambda *_: zoom)
    cv2.imwrite(str(tmp_path / "a.png"), draw_nuclei(500, 450, seed=0))
    segmenter, params = load_run(run)
    if not is_large:
        free = segmenter.finder.select.model_copy(update={"max_pixels": 10**6})
        candidates = replace(segmenter.finder.candidates, select=free)
        segmenter = replace(segmenter, finder=replace(segmenter.finder, candidates=candidates))
    list(find_all([tmp_path / "a.png"], tmp_path / "out", segmenter, params.housekeeping))
    said = capsys.readouterr().err
    assert ("its nuclei may be" in said) == (word is not None)
    assert f"its nuclei may be {word} than" in said or word is None


def test_an_image_without_nuclei_is_looked_at_from_further_and_further_off(run, tmp_path, monkeypatch):
    looks = []

    def find_at_a_quarter(_, probabilities, zoom):
        looks.append(zoom)
        label_map = np.zeros(probabilities.shape[1:3], np.int32)
        label_map[20:70, 20:70] = zoom <= 0.36
        return label_map

    monkeypatch.setattr("pipeline.folds.prediction.find_zoom", lambda *_: 1.0)
    monkeypatch.setattr("pipeline.folds.finder.NucleusFinder.find", find_at_a_quarter)
    cv2.imwrite(str(tmp_path / "a.png"), draw_nuclei(90, 90, seed=0))
    ((_, count),) = segment(run, [tmp_path / "a.png"], tmp_path / "out")
    assert count == 1
    assert looks == pytest.approx([1.0, 0.5**0.5, 0.5, 0.5**1.5])
