"""An archive is indexed as Kaggle lays it out, and what no honest archive has ends in one error that names it."""

import contextlib
import stat
import time
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.images.archive import ArchiveImage, index_archive, open_archive, read_entry

IMAGE, MASK = "a/images/a.png", "a/masks/m.png"


def index(path, labelled=True, allow_unlabelled=False):
    with open_archive(path) as archive:
        return index_archive(archive, labelled, allow_unlabelled)


def read_all(path):
    with open_archive(path) as archive:
        for image in index_archive(archive, labelled=True, allow_unlabelled=True):
            for entry in (image.image_entry, *image.mask_entries):
                read_entry(archive, entry, 10**6)


def refusal(path, **options):
    """Return the message of the one error in which indexing ends; it names the archive."""
    with pytest.raises(InputError) as caught:
        index(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_images_and_masks_come_sorted(make_archive):
    entries = ["b/masks/2.png", "b/images/b.png", "b/masks/1.png", IMAGE, MASK]
    assert index(make_archive(dict.fromkeys(entries, b""))) == [
        ArchiveImage("a", IMAGE, (MASK,)),
        ArchiveImage("b", "b/images/b.png", ("b/masks/1.png", "b/masks/2.png")),
    ]


def test_leading_folders_and_what_is_not_the_data_are_passed_over(make_archive):
    top = "data-science-bowl-2018-fixes-master/stage1_train/"
    others = ["README.md", f"{top}README.md", f"{top}a/notes.txt", f"{top}a/images/.DS_Store", f"{top}a/masks/._m.png"]
    others += ["__MACOSX/a/images/a.png", f"{top}", f"{top}a/", f"{top}a/images/"]
    path = make_archive(dict.fromkeys([top + IMAGE, top + MASK, *others], b""))
    assert index(path) == [ArchiveImage("a", top + IMAGE, (top + MASK,))]


def test_capitals_in_the_layout_do_not_matter(make_archive):
    assert index(make_archive({"a/Images/a.PNG": b"", "a/MASKS/m.Png": b""})) == [
        ArchiveImage("a", "a/Images/a.PNG", ("a/MASKS/m.Png",))
    ]


def test_a_test_set_has_no_masks_even_where_it_has(make_archive):
    path = make_archive({IMAGE: b"", MASK: b"", "stray/masks/m.png": b""})
    assert index(path, labelled=False) == [ArchiveImage("a", IMAGE, ())]


@pytest.mark.parametrize(
    "entry", ["../a/images/a.png", "a/../../images/a.png", "/a/images/a.png", "a\\images\\a.png", "C:/a/images/a.png"]
)
def test_entries_that_lead_out_of_the_folder_are_refused(make_archive, entry):
    message = refusal(make_archive({IMAGE: b"", MASK: b"", entry: b""}))
    assert repr(entry) in message
    assert "leads out" in message


def test_control_characters_are_refused(make_archive):
    assert "control character" in refusal(make_archive({IMAGE: b"", MASK: b"", "b\n/images/b.png": b""}))


def test_a_symbolic_link_is_refused(make_archive):
    path = make_archive({IMAGE: b"", MASK: b""})
    link = zipfile.ZipInfo("b/images/b.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    message = refusal(path)
    assert "symbolic link" in message
    assert link.filename in message


def test_an_encrypted_entry_is_refused(make_archive):
    path = make_archive({IMAGE: b"", MASK: b""})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flags of the directory's first entry
    path.write_bytes(data)
    message = refusal(path)
    assert "encrypted" in message
    assert IMAGE in message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A/images/a.png", "a/images/A.png"),
        (unicodedata.normalize("NFC", "é/images/a.png"), unicodedata.normalize("NFD", "é/images/a.png")),
    ],
)
def test_names_that_some_file_systems_take_for_one_are_refused(make_archive, first, second):
    message = refusal(make_archive({first: b"", second: b""}))
    assert "the same name" in message
    assert repr(first) in message
    assert repr(second) in message


@pytest.mark.parametrize("second", ["a/images/b.png", "part2/a/images/a.png"])
def test_two_images_with_one_id_are_refused(make_archive, second):
    message = refusal(make_archive({IMAGE: b"", MASK: b"", second: b""}))
    assert "two images with the id a" in message
    assert IMAGE in message
    assert second in message


def test_a_mask_without_an_image_is_refused(make_archive):
    message = refusal(make_archive({IMAGE: b"", MASK: b"", "b/masks/m.png": b""}), allow_unlabelled=True)
    assert "b/masks/m.png: a mask without an image" in message


def test_an_image_without_masks_is_refused_unless_allowed(make_archive):
    path = make_archive({IMAGE: b"", MASK: b"", "b/images/b.png": b""})
    message = refusal(path)
    assert "b/images/b.png: no masks" in message
    assert "data.allow_unlabelled" in message
    assert index(path, allow_unlabelled=True)[1] == ArchiveImage("b", "b/images/b.png", ())


@pytest.mark.parametrize("entries", [{}, {"README.md": b"hello"}, {"images/a.png": b""}])
def test_an_archive_without_images_is_refused(make_archive, entries):
    assert "is it the right archive?" in refusal(make_archive(entries), labelled=False)


def test_a_missing_archive_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.zip: no such archive; .* fetch"):
        open_archive(tmp_path / "nothing.zip")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_archive_is_refused(make_archive, kept):
    path = make_archive({IMAGE: bytes(1000), MASK: bytes(1000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=r"train\.zip: not a whole zip file"):
        open_archive(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bound_are_refused(make_archive, method, monkeypatch):
    path = make_archive({IMAGE: bytes(10**6), MASK: b""}, compression=method)
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2")
    data[place + 24 : place + 28] = (100).to_bytes(4, "little")  # the directory says that it is small
    path.write_bytes(data)
    unpacked = []
    with open_archive(path) as archive:
        # All bytes of an entry come from the archive's file; of a refused one, none is read.
        monkeypatch.setattr(archive.fp, "read", unpacked.append, raising=True)
        with pytest.raises(InputError, match=rf"{IMAGE}: packed by method {method}"):
            read_entry(archive, IMAGE, 10**6)
    assert unpacked == []


def test_a_size_that_lies_does_not_unpack_more(make_archive):
    path = make_archive({IMAGE: bytes(10**7), MASK: b""})
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2")
    data[place + 24 : place + 28] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with open_archive(path) as archive, pytest.raises(InputError, match=r"damaged .another size than 100 bytes"):
            read_entry(archive, IMAGE, 10**6)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("field", [20, 24])  # packed and unpacked size, section 4.3.12 of PKWARE's APPNOTE
@pytest.mark.parametrize("size", [10**8, 2**32 - 2, 2**60])
def test_an_absurd_size_is_refused_without_taking_memory(make_archive, field, size):
    path = make_archive({IMAGE: b"the pixels", MASK: b""}, compression=zipfile.ZIP_STORED)
    with open_archive(path) as archive:
        info = archive.getinfo(IMAGE)
        setattr(info, {20: "compress_size", 24: "file_size"}[field], size)
        with pytest.raises(InputError, match=f"unpacks to {size} bytes"):
            read_entry(archive, IMAGE, 10**6)


def test_entries_that_share_their_bytes_are_refused(make_archive):
    """As in David Fifield's bombs: a directory of many names that all lead to one image."""
    path = make_archive({IMAGE: b"the pixels", MASK: b"the mask", "b/images/b.png": b"the pixels"})
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\1\2")
    data[place + 42 : place + 46] = bytes(4)  # where the entry lies
    path.write_bytes(data)
    message = refusal(path, allow_unlabelled=True)
    assert "'b/images/b.png': lies over 'a/images/a.png'" in message


def test_a_place_before_the_archive_is_refused(make_archive):
    path = make_archive({IMAGE: b"", MASK: b""})
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\5\6")
    data[place + 16 : place + 20] = (10**6).to_bytes(4, "little")  # where the directory lies, behind the file's end
    path.write_bytes(data)
    with pytest.raises(InputError):
        index(path)


def test_a_name_of_thousands_of_characters_is_refused_in_a_short_message(make_archive):
    message = refusal(make_archive({IMAGE: b"", MASK: b"", "d/" * 20_000 + "x.png": b""}))
    assert "a name of 40005 characters" in message
    assert len(message) < 1000


def test_a_path_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a whole zip file"):
        open_archive(tmp_path / "a\0.zip")


def test_a_hundred_thousand_empty_entries_are_soon_told_apart(make_archive):
    path = make_archive({f"{i}/images/{i}.png": b"" for i in range(100_000)}, compression=zipfile.ZIP_STORED)
    start = time.process_time()
    assert len(index(path, labelled=False)) == 100_000
    assert time.process_time() - start < 20  # 2 s on the machine where it was written


def test_a_damaged_entry_is_named(make_archive):
    path = make_archive({IMAGE: b"the pixels", MASK: b""}, compression=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"the pixels", b"the voxels"))
    with open_archive(path) as archive:
        assert read_entry(archive, MASK, 10**6) == b""
        with pytest.raises(InputError, match=rf"{IMAGE}: damaged \(Bad CRC-32"):
            read_entry(archive, IMAGE, 10**6)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_byte_is_damaged_no_other_error_comes(make_archive, data):
    path = make_archive({"é/images/a.png": b"the pixels" * 9, "é/masks/m.png": b"the mask" * 9})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        read_all(path)


def test_an_entry_that_unpacks_to_more_than_an_image_can_take_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(IMAGE, bytes(3 * 2**20))
    with zipfile.ZipFile(path) as archive, pytest.raises(InputError, match="unpacks to 3145728 bytes"):
        read_entry(archive, IMAGE, max_pixels=1000)
