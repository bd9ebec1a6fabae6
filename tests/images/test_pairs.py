"""Images with label maps: what is read from folders and zips, the ids of nuclei by hand, and what is refused."""

import io
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import digest_archive, is_litter
from pipeline.housekeeping import HousekeepingParams
from pipeline.images.archive import LITTER
from pipeline.images.pairs import number_nuclei, read_pairs
from pipeline.images.prepare import prepare_split
from pipeline.images.source import PreparedImage, Source
from pipeline.images.splits import PreparedSplit
from pipeline.params import DataParams
from tests.tiny import tiny_source

IMAGE = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30).astype(np.uint8)


def label_nuclei(*ids: int, dtype: type = np.uint16) -> NDArray[Any]:
    """Return labels (20, 30) of a square of 4 px for each id, all in a row."""
    labels = np.zeros((20, 30), dtype)
    for number, value in enumerate(ids):
        labels[8:12, 1 + 5 * number : 5 + 5 * number] = value
    return labels


def as_tiff(array: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **{"photometric": "minisblack"} | options)
    return stream.getvalue()


def as_png(array: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


GOOD = {
    "images/b.png": as_png(IMAGE),
    "labels/b.tif": as_tiff(label_nuclei(7, 70_000, 9, dtype=np.int32)),
    "images/a.tiff": as_tiff(np.dstack([IMAGE] * 3), photometric="rgb"),
    "labels/a.png": as_png(label_nuclei(2, 300)),
    "README.md": b"whose they are",
}


def write(root: Path, files: dict[str, bytes], kind: str = "folder") -> Source:
    """Write files to a folder, or to a zip that has them in a folder of its own."""
    path = root / "mine"
    if kind == "zip":
        path = root / "mine.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"mine/{name}", content)
            archive.writestr("__MACOSX/mine/images/._a.tiff", b"litter")
    else:
        for name, content in {**files, "labels/Thumbs.db": b"litter"}.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return Source(
        section="data.sources.mine", archive=path, labels=None, labelled=True, allow_unlabelled=False,
        min_fragment_px=4, max_pixels=10_000, workers=1,
    )  # fmt: skip


def label_map_of(prepared: PreparedImage) -> NDArray[np.uint16]:
    assert prepared.label_map is not None
    return prepared.label_map


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_folders_and_zips_give_the_same_pairs(tmp_path: Path, kind: str) -> None:
    a, b = read_pairs(write(tmp_path, GOOD, kind))
    assert (a.image_id, b.image_id) == ("a", "b")
    assert (a.image == IMAGE[..., None]).all()
    assert (label_map_of(a) == label_nuclei(1, 2)).all()
    assert (label_map_of(b) == label_nuclei(1, 3, 2)).all()
    assert label_map_of(b).dtype == np.uint16
    assert (b.row["nuclei"], b.row["median_area_px"]) == (3, 16)
    assert not a.problems + b.problems


def test_they_are_prepared_beside_a_competition_zip(
    tmp_path: Path, make_archive: Any, data_params: DataParams, housekeeping: HousekeepingParams
) -> None:
    write(tmp_path, GOOD)
    make_archive({"c/images/c.png": IMAGE, "c/masks/m.png": label_nuclei(255).astype(np.uint8)}, "train.zip")
    sources = {
        "dsb2018": tiny_source("train.zip", "competition"),
        "mine": tiny_source("mine", "pairs", scored=False, weight=0.5),
    }
    out = tmp_path / "out"
    out.mkdir()
    table = prepare_split(sources, tmp_path, out, True, data_params, housekeeping)
    assert table[["image_id", "source", "scored", "weight"]].to_numpy().tolist() == [
        ["a", "mine", 0, 0.5],
        ["b", "mine", 0, 0.5],
        ["c", "dsb2018", 1, 1.0],
    ]
    assert PreparedSplit.open(out).table.equals(table)


def test_as_a_test_set_labels_are_not_looked_at(tmp_path: Path) -> None:
    source = write(tmp_path, {"images/a.png": as_png(IMAGE), "labels/z.png": b"damaged"})
    (only,) = read_pairs(Source(**{**vars(source), "labelled": False}))
    assert (only.image_id, only.label_map) == ("a", None)


def test_holes_of_background_are_filled_and_nuclei_in_them_stay() -> None:
    """The ring 5 has the nucleus 2 in it, which touches it; 9 has a pixel of background."""
    labels = np.zeros((12, 24), np.uint8)
    labels[1:9, 1:9], labels[2:8, 2:8] = 5, 2
    labels[1:6, 12:17], labels[3, 14] = 9, 0
    label_map, problems = number_nuclei(labels, "labels", 4)
    assert (np.bincount(label_map.ravel())[1:] == [36, 28, 25]).all()
    assert [(problem.mask_id, problem.problem, problem.value) for problem in problems] == [("9", "hole", 1)]


def test_the_inner_of_two_rings_has_the_hole() -> None:
    labels = np.zeros((13, 13), np.uint8)
    labels[1:12, 1:12], labels[3:10, 3:10], labels[5:8, 5:8] = 1, 2, 0
    label_map, _ = number_nuclei(labels, "labels", 4)
    assert (label_map[5:8, 5:8] == 2).all()


def test_specks_are_dropped_and_fragments_kept() -> None:
    labels = label_nuclei(1, 2, 3, 4, 5)
    labels[0, 0], labels[0:3, 10:14], labels[19, 29] = 1, 2, 8
    label_map, problems = number_nuclei(labels, "labels", 4)
    found = [(problem.mask_id, problem.problem, problem.value) for problem in problems]
    assert found == [("1", "speck", 1), ("2", "fragment", 12), ("8", "speck", 1)]
    assert label_map.max() == 5
    assert label_map[0, 0] == label_map[19, 29] == 0
    assert label_map[0, 10] == 2


def test_a_few_specks_are_no_pieces_and_many_are_a_blur() -> None:
    labels = label_nuclei(1, 2)
    labels[0:6:2, 0:28:4] = 1  # 21 of them, of two nuclei
    with pytest.raises(InputError, match=r"labels: 2 ids in 2 pieces and 21 specks: .* blurred"):
        number_nuclei(labels, "labels", 4)
    labels[0] = 0
    assert (number_nuclei(labels, "labels", 4)[0] == label_nuclei(1, 2)).all()
    only = label_nuclei(255)
    only[0, 0] = only[19, 29] = 255
    assert (number_nuclei(only, "labels", 4)[0] == label_nuclei(1)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_without_a_fraction_are_ids(dtype: type) -> None:
    labels = label_nuclei(7, 70_000, 9, dtype=dtype)
    labels[0, 0] = 9
    label_map, problems = number_nuclei(labels, "labels", 4)
    assert (label_map == label_nuclei(1, 3, 2)).all()
    assert [problem.mask_id for problem in problems] == ["9"]
    labels[0, 0] = np.inf
    with pytest.raises(InputError, match="labels: the value inf among the ids, no whole number"):
        number_nuclei(labels, "labels", 4)


def test_grey_may_be_saved_as_colours() -> None:
    labels = label_nuclei(3, 4)
    for channels in ([labels] * 3, [labels, labels, labels, np.full_like(labels, 65535)], [labels, labels * 0]):
        assert (number_nuclei(np.dstack(channels), "labels", 4)[0] == label_nuclei(1, 2)).all()


def checkered(*values: int) -> NDArray[np.uint8]:
    """Return labels of 35 squares, each of the next of the values."""
    squares = np.resize(np.array(values, np.uint8), 5 * 7).reshape(5, 7)
    labels = np.zeros((20, 28), np.uint8)
    for row, column in np.ndindex(5, 7):
        labels[4 * row : 4 * row + 3, 4 * column : 4 * column + 3] = squares[row, column]
    return np.pad(labels, ((0, 0), (0, 2)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels/a.png": None}, r"images/a\.tiff has no labels/a\.\*; add it, or remove images/a\.tiff"),
        ({"images/b.png": None}, r"labels/b\.tif has no images/b\.\*"),
        ({"labels/a.tif": b""}, r"labels/a\.png and labels/a\.tif have one name; remove one"),
        ({"images/b.jpg": b""}, r"images/b\.jpg and images/b\.png have one name"),
        ({"labels/b.tif": as_tiff(label_nuclei(1)[:, :25])}, r"labels/b\.tif: labels of 20 x 25 px for .* 20 x 30 px"),
        (
            {"labels/b.tif": as_tiff(label_nuclei(1, dtype=np.float32) / 2)},
            r"labels/b\.tif: the value 0\.5 among the ids",
        ),
        ({"labels/b.tif": as_tiff(label_nuclei(1, dtype=np.float32) * np.nan)}, r"labels/b\.tif: values .* not finite"),
        ({"labels/b.tif": as_tiff(label_nuclei(-1, dtype=np.float32))}, r"labels/b\.tif: the id -1, below 0"),
        ({"labels/b.tif": as_tiff(label_nuclei(-1, dtype=np.int16))}, r"labels/b\.tif: the id -1, below 0"),
        ({"labels/b.tif": as_tiff(label_nuclei(1) + np.uint16(1))}, r"ids from 1 to 2, and no 0, the background"),
        ({"labels/b.tif": as_tiff(np.stack([label_nuclei(1)] * 2))}, r"labels/b\.tif: 2 pictures; give each image"),
        ({"labels/b.tif": as_tiff(label_nuclei(0))}, r"labels/b\.tif: all background; .*data\.allow_unlabelled"),
        (
            {"labels/b.tif": as_tiff(checkered(255))},
            r"labels/b\.tif: 35 pieces of one id, 255: a mask of many nuclei.*number",
        ),
        ({"labels/b.tif": as_tiff(label_nuclei(1, 1))}, r"labels/b\.tif: 2 pieces of one id, 1: a mask of many nuclei"),
        ({"labels/b.tif": as_tiff(checkered(1, 2))}, r"labels/b\.tif: 2 ids in 35 pieces and 0 specks: classes"),
        ({"labels/a.png": as_png(checkered(*range(1, 31)))}, r"labels/a\.png: 30 ids in 35 pieces"),
        ({"labels/a.png": as_png(np.dstack([label_nuclei(1), label_nuclei(2), label_nuclei(3)]))}, "in colours"),
        ({"labels/a.png": b"II*\0 and no TIFF"}, r"labels/a\.png: a TIFF without a page"),
        ({"labels/a.png": b"text"}, r"labels/a\.png: does not decode"),
        ({"images/b.png": as_png(np.zeros((200, 200), np.uint8))}, r"images/b\.png: .*max_pixels"),
        ({"images/a,b.png": as_png(IMAGE), "labels/a,b.png": b""}, r"the id 'a,b' cannot stand in a CSV"),
        (dict.fromkeys(GOOD), r"no images/<name>\.png or \.tif in it"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_is_no_pair_is_refused(tmp_path: Path, kind: str, files: dict[str, bytes | None], message: str) -> None:
    content = {name: data for name, data in {**GOOD, **files}.items() if data is not None}
    with pytest.raises(InputError, match=message) as error:
        list(read_pairs(write(tmp_path, content, kind)))
    assert "\n" not in str(error.value)


def test_an_image_without_nuclei_is_one_where_that_is_said(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD | {"labels/b.tif": as_tiff(label_nuclei(0))})
    _, empty = read_pairs(Source(**{**vars(source), "allow_unlabelled": True}))
    assert (empty.row["nuclei"], label_map_of(empty).max()) == (0, 0)


def test_more_nuclei_than_a_label_map_holds_are_refused() -> None:
    labels = np.arange(65_537, dtype=np.uint32)[None]
    with pytest.raises(InputError, match="65536 ids; a label map holds 65535"):
        number_nuclei(labels, "labels", 0)


def test_labels_elsewhere_and_a_missing_archive_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"data\.sources\.mine\.labels is x\.zip.*set it to null"):
        list(read_pairs(Source(**{**vars(source), "labels": tmp_path / "x.zip"})))
    with pytest.raises(InputError, match=r"nowhere: no such file or folder; set data\.dir and data\.sources\.mine\."):
        list(read_pairs(Source(**{**vars(source), "archive": tmp_path / "nowhere"})))


@pytest.mark.parametrize("place", ["mine", "mine/images", "mine/labels"])
def test_a_linked_folder_is_refused(tmp_path: Path, place: str) -> None:
    source = write(tmp_path, GOOD)
    (tmp_path / place).rename(tmp_path / "elsewhere")
    (tmp_path / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{place}: a link to a folder, .*; copy the folder in, or zip it"):
        list(read_pairs(source))


def test_linked_files_are_read_and_their_content_is_digested(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD)
    digest, image = digest_archive(source.archive), source.archive / "images" / "b.png"
    image.rename(tmp_path / "b.png")
    image.symlink_to(tmp_path / "b.png")
    assert len(list(read_pairs(source))) == 2
    assert digest_archive(source.archive) == digest
    (tmp_path / "b.png").write_bytes(as_png(IMAGE + 1))
    assert digest_archive(source.archive) != digest


def test_what_is_passed_over_is_not_digested(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD).archive
    digest = digest_archive(path)
    for name in ("images/.DS_Store", ".git/config", *(f"images/{name}" for name in LITTER)):
        assert any(map(is_litter, name.split("/")))
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"litter")
    assert digest_archive(path) == digest
    (path / "README.md").write_text("whose they are not")
    assert digest_archive(path) != digest
