"""Stacks of sections: the layouts that are read, the order of slices, label maps by hand, and what is refused."""

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from pipeline.errors import InputError
from pipeline.housekeeping import HousekeepingParams
from pipeline.images.prepare import prepare_split
from pipeline.images.source import Source
from pipeline.images.splits import PreparedSplit
from pipeline.images.stack import label_insides, read_stack
from pipeline.params import DataParams, SourceParams
from tests.tiny import tiny_source


def make_source(path: Path, labels: Path | None) -> Source:
    return Source(
        section="data.sources.made", archive=path, labels=labels, labelled=True, allow_unlabelled=False,
        min_fragment_px=0, max_pixels=10_000, workers=1,
    )  # fmt: skip


def make_slices(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` grey slices (12, 15) uint8 whose pixels say their number, and their labels."""
    images = np.stack([np.full((12, 15), 10 + number, np.uint8) for number in range(count)])
    labels = np.full((count, 12, 15), 255, np.uint8)
    labels[:, :, 7] = 0
    return images, labels


def write_folders(root: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    for kind, arrays in (("image", images), ("label", labels)):
        (root / kind).mkdir(parents=True)
        for number, array in enumerate(arrays):
            (root / kind / f"{number}.png").write_bytes(cv2.imencode(".png", array)[1].tobytes())
    return root


def write_zip(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.glob("*/*")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("README.txt", "not a slice")
    return path


@pytest.mark.parametrize("layout", ["folder", "zip", "tiff"])
def test_all_layouts_give_the_slices_in_the_order_of_the_stack(tmp_path: Path, layout: str) -> None:
    images, labels = make_slices(12)
    path, label_path = write_folders(tmp_path / "stack", images, labels), None
    if layout == "zip":
        path = write_zip(tmp_path / "stack.zip", path)
    if layout == "tiff":
        path, label_path = tmp_path / "train-volume.tif", tmp_path / "train-labels.tif"
        tifffile.imwrite(path, images, photometric="minisblack")
        tifffile.imwrite(label_path, labels, photometric="minisblack")
    slices = list(read_stack(make_source(path, label_path)))
    assert [prepared.image_id for prepared in slices] == [f"{path.stem}.{number:02d}" for number in range(12)]
    assert [int(prepared.image[0, 0, 0]) for prepared in slices] == list(range(10, 22))
    for prepared in slices:
        assert prepared.image.shape == (12, 15, 3)
        assert prepared.label_map is not None
        assert np.unique(prepared.label_map).tolist() == [0, 1, 2]
        assert prepared.row["nuclei"] == 2


def test_insides_that_touch_at_a_corner_alone_are_two_cells() -> None:
    label = np.array([[255, 0], [0, 255]], np.uint8)
    assert len(np.unique(label_insides(label, "label"))) == 3
    assert label_insides(np.array([[255, 255], [0, 255]], np.uint8), "label").max() == 1


def test_a_grey_label_may_be_saved_as_colours_and_none_other() -> None:
    grey = np.array([[0, 255]], np.uint8)
    colours = np.repeat(grey[..., None], 3, axis=2)
    assert label_insides(colours, "label").tolist() == [[0, 1]]
    colours[..., 0] = 7
    with pytest.raises(InputError, match="label: a label in colours"):
        label_insides(colours, "label")


def test_labels_of_one_value() -> None:
    assert label_insides(np.zeros((3, 3), np.uint8), "label").max() == 0
    assert label_insides(np.full((3, 3), 255, np.uint8), "label").min() == 1
    assert label_insides(np.array([[0, 1]], bool), "label").tolist() == [[0, 1]]


def prepare(
    folder: Path, source: SourceParams, data: DataParams, housekeeping: HousekeepingParams, labelled: bool = True
) -> PreparedSplit:
    (folder / "prepared").mkdir()
    prepare_split({"made": source}, folder, folder / "prepared", labelled, data, housekeeping)
    return PreparedSplit.open(folder / "prepared")


def test_a_stack_is_prepared_like_any_split(
    tmp_path: Path, data_params: DataParams, housekeeping: HousekeepingParams
) -> None:
    write_zip(tmp_path / "stack.zip", write_folders(tmp_path / "stack", *make_slices(3)))
    source = tiny_source("stack.zip", "stack")
    split = prepare(tmp_path, source, data_params, housekeeping)
    assert split.image_ids == ["stack.0", "stack.1", "stack.2"]
    assert split.table["nuclei"].tolist() == [2, 2, 2]
    assert split.label_map("stack.1").dtype == np.uint16


@pytest.mark.parametrize("labelled", [True, False])
def test_a_stack_of_two_tiffs_is_prepared_by_their_names(
    tmp_path: Path, data_params: DataParams, housekeeping: HousekeepingParams, labelled: bool
) -> None:
    for name, pages in zip(("volume.tif", "labels.tif"), make_slices(3), strict=True):
        tifffile.imwrite(tmp_path / name, pages, photometric="minisblack")
    source = tiny_source("volume.tif", "stack", "labels.tif")
    split = prepare(tmp_path, source, data_params, housekeeping, labelled)
    assert split.table["nuclei"].tolist() == [2 * labelled] * 3


def break_stack(case: str, root: Path) -> tuple[Path, Path | None]:
    images, labels = make_slices(3)
    stack = write_folders(root / "stack", images, labels)
    if case == "no label":
        (stack / "label" / "1.png").unlink()
    if case == "no image":
        (stack / "image" / "2.png").unlink()
    if case == "other size":
        (stack / "label" / "1.png").write_bytes(cv2.imencode(".png", labels[0, :5])[1].tobytes())
    if case == "grey label":
        (stack / "label" / "1.png").write_bytes(
            cv2.imencode(".png", np.arange(180, dtype=np.uint8).reshape(12, 15))[1].tobytes()
        )
    if case == "two of one number":
        for kind in ("image", "label"):
            (stack / kind / "01.png").write_bytes((stack / kind / "1.png").read_bytes())
    if case == "too large":
        (stack / "image" / "1.png").write_bytes(cv2.imencode(".png", np.zeros((200, 200), np.uint8))[1].tobytes())
    if case == "all black":
        (stack / "label" / "2.png").write_bytes(cv2.imencode(".png", np.zeros((12, 15), np.uint8))[1].tobytes())
    if case == "a comma":
        return write_zip(root / "a,b.zip", stack), None
    if case == "needless labels":
        return stack, root / "labels.tif"
    if case == "nothing":
        return root / "nowhere", None
    if case == "empty":
        (root / "bare").mkdir()
        return root / "bare", None
    if case.startswith("tiff"):
        tifffile.imwrite(root / "a.tif", images, photometric="minisblack")
        tifffile.imwrite(root / "b.tif", labels[:2], photometric="minisblack")
        return root / "a.tif", root / "b.tif" if case == "tiff of fewer" else None
    return stack, None


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no label", r"image/1\.png has no label"),
        ("no image", r"label/2\.png has no image"),
        ("other size", r"label/1\.png: a label of 5 x 15 px for a slice of 12 x 15"),
        ("grey label", r"label/1\.png: a label of 180 values \(0, 1, 2 \.\.\)"),
        ("two of one number", "two slices of one name and number"),
        ("too large", "max_pixels"),
        ("all black", r"label/2\.png: all black, so there is no cell"),
        ("a comma", r"'a,b\.0' cannot stand in a CSV"),
        ("needless labels", r"data\.sources\.made\.labels is labels\.tif, but stack is no TIFF"),
        ("nothing", r"nowhere: no such file or folder; set data\.dir"),
        ("empty", r"bare: no image/<name>\.png"),
        ("tiff of fewer", r"b\.tif: 2 pages for the 3 of a\.tif"),
        ("tiff alone", r"a\.tif: a stack without labels; set data\.sources\.made\.labels"),
    ],
)
def test_a_broken_stack_is_refused_with_its_cause(tmp_path: Path, case: str, message: str) -> None:
    path, labels = break_stack(case, tmp_path)
    with pytest.raises(InputError, match=message):
        list(read_stack(make_source(path, labels)))
