"""What is packed is what is read, by this package and by numpy; equal arrays make equal files."""

import contextlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import InputError
from pipeline.images.store import Pack, PackWriter, open_packs

DTYPES = st.sampled_from(["u1", "u2", "i4", "i8", "f4", "f8", "?", "c8", ">i4", "U5", "M8[s]"])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
ODD_NAMES = ["a.image", "é/ü.image", "a b,c\"d'", "x.npy", "../up", "日本語", "n" * 300, "NA", "0012"]


def write(path, arrays):
    with PackWriter(path) as pack:
        for name, array in arrays.items():
            pack.add(name, array)
    return path


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "a.image": rng.integers(0, 256, (5, 7, 3), dtype=np.uint8),
        "a.label_map": rng.integers(0, 65536, (5, 7), dtype=np.uint16),
        "empty": np.zeros((0, 4), np.float32),
    }


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=ARRAYS, second=ARRAYS)
def test_round_trip_of_any_array_and_numpy_reads_it_too(tmp_path, first, second):
    arrays = {"first": first, "second": second}
    path = write(tmp_path / "pack.npz", arrays)
    pack = Pack(path)
    with np.load(path) as loaded:
        assert list(pack) == list(loaded) == list(arrays)
        for name, array in arrays.items():
            assert_same(pack[name], array)
            assert_same(loaded[name], array)


def test_slices_and_columns_are_packed_as_they_look(tmp_path):
    array = np.arange(24).reshape(4, 6)
    views = {"slice": array[::2, ::-1], "transposed": array.T, "fortran": np.asfortranarray(array)}
    pack = Pack(write(tmp_path / "pack.npz", views))
    for name, view in views.items():
        assert_same(pack[name], view)


def test_a_file_of_numpys_own_reads_alike(tmp_path, arrays):
    arrays |= {"fortran": np.asfortranarray(np.arange(6).reshape(2, 3))}
    np.savez(tmp_path / "pack.npz", **arrays)
    pack = Pack(tmp_path / "pack.npz")
    for name, array in arrays.items():
        assert_same(pack[name], array)


def test_equal_content_makes_equal_bytes(tmp_path, arrays):
    first, second = (write(tmp_path / name, arrays).read_bytes() for name in ("first.npz", "second.npz"))
    assert first == second


def test_odd_names(tmp_path):
    arrays = {name: np.array([i]) for i, name in enumerate(ODD_NAMES)}
    pack = Pack(write(tmp_path / "pack.npz", arrays))
    assert list(pack) == ODD_NAMES
    assert [int(pack[name][0]) for name in ODD_NAMES] == list(range(len(ODD_NAMES)))


def test_a_pack_is_a_mapping_of_arrays_that_nobody_can_change(tmp_path, arrays):
    pack = Pack(write(tmp_path / "pack.npz", arrays))
    assert len(pack) == 3
    assert "a.image" in pack
    assert "b.image" not in pack
    with pytest.raises(KeyError):
        pack["b.image"]
    with pytest.raises(ValueError, match="read-only"):
        pack["a.image"][0] = 0


def test_an_empty_pack(tmp_path):
    assert dict(Pack(write(tmp_path / "pack.npz", {}))) == {}


def test_an_array_outlives_its_pack(tmp_path, arrays):
    array = Pack(write(tmp_path / "pack.npz", arrays))["a.image"]
    np.testing.assert_array_equal(array, arrays["a.image"])


def test_pickled_it_is_only_its_path(tmp_path, arrays):
    arrays["large"] = np.zeros(100_000)
    data = pickle.dumps(Pack(write(tmp_path / "pack.npz", arrays)))
    assert len(data) < 1000
    assert_same(pickle.loads(data)["a.image"], arrays["a.image"])


def test_several_packs_are_one_mapping_also_when_pickled(tmp_path, arrays):
    write(tmp_path / "0.npz", arrays)
    write(tmp_path / "1.npz", {"b.image": np.ones(3)})
    packs = open_packs([tmp_path / "0.npz", tmp_path / "1.npz"])
    for mapping in (packs, pickle.loads(pickle.dumps(packs))):
        assert sorted(mapping) == ["a.image", "a.label_map", "b.image", "empty"]
        assert_same(mapping["b.image"], np.ones(3))


def test_a_name_is_taken_once(tmp_path):
    with PackWriter(tmp_path / "pack.npz") as pack:
        pack.add("a", np.zeros(3))
        with pytest.raises(InputError, match=r"pack\.npz: two arrays named 'a'"):
            pack.add("a", np.ones(3))


def test_a_missing_pack_says_so(tmp_path):
    with pytest.raises(InputError, match=r"none\.npz: not a readable pack .* run the stage"):
        Pack(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"none\.npz"):
        open_packs([tmp_path / "none.npz"])


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-4, -4), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (15,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (17,), }",
        "{'descr': '<u2', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999,), }",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (16,), }",
        "{'descr': 5, 'fortran_order': False, 'shape': (16,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': 16}",
        "[]",
        "(" * 3000,
    ],
)
def test_a_header_that_is_not_of_its_values_is_refused(tmp_path, header):
    text = header.encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "pack.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(16))
        archive.writestr("b.npy", bytes(100))
    pack = Pack(tmp_path / "pack.npz")
    with pytest.raises(InputError, match=r"pack\.npz: 'a': damaged"):
        pack["a"]


def test_two_arrays_of_one_name_are_refused(tmp_path, arrays):
    path = write(tmp_path / "pack.npz", {"a": np.zeros(3), "b": np.zeros(3)})
    path.write_bytes(path.read_bytes().replace(b"b.npy", b"a.npy"))
    with pytest.raises(InputError, match=r"not a readable pack .two arrays of one name"):
        Pack(path)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_pack_is_refused(tmp_path, arrays, kept):
    path = write(tmp_path / "pack.npz", arrays)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match="not a readable pack"):
        Pack(path)


def test_a_compressed_npz_is_refused(tmp_path, arrays):
    np.savez_compressed(tmp_path / "pack.npz", **arrays)
    with pytest.raises(InputError, match=r"pack\.npz: 'a\.image': damaged"):
        Pack(tmp_path / "pack.npz")["a.image"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_byte_is_damaged_no_other_error_comes(tmp_path, data):
    path = write(tmp_path / "pack.npz", {"é": np.arange(5), "b": np.zeros((2, 3), np.uint8)})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        pack = Pack(path)
        for name in pack:
            pack[name].tobytes()
