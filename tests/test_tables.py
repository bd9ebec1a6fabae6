"""A CSV is read as text and checked numbers, or refused in one line that says what to do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.tables import check_image_id, read_csv_table

COLUMNS = {"image_id": str, "count": int, "share": float}


def read(text, optional=None):
    return read_csv_table(Path("some.csv"), COLUMNS, "make it again", "list", text, optional)


def test_columns_come_in_their_order_and_others_are_left_out():
    table = read("share,more,count,image_id\n0.5,x,3,007\n1e-05,y,4,NA\n")
    assert table.to_dict("list") == {"image_id": ["007", "NA"], "count": [3, 4], "share": [0.5, 1e-05]}


def test_columns_that_may_be_missing():
    optional = {"here": float, "gone": float}
    table = read("image_id,count,share,here\na,1,0.5,2.5\n", optional)
    assert list(table.columns) == [*COLUMNS, "here"]
    assert table["here"].tolist() == [2.5]
    with pytest.raises(InputError, match=r"image 'a' has here 'x', not a number; make it again"):
        read("image_id,count,share,here\na,1,0.5,x\n", optional)


def test_a_table_without_rows_has_its_types():
    table = read("image_id,count,share\n")
    assert table.empty
    assert [table[column].dtype.kind for column in ("count", "share")] == ["i", "f"]


def test_a_file_is_read_by_its_path(tmp_path):
    path = tmp_path / "list.csv"
    with pytest.raises(InputError, match=r"list\.csv: not a readable list .*No such file.*; make it again"):
        read_csv_table(path, COLUMNS, "make it again", "list")
    path.write_bytes(b"image_id,count,share\n\xff,1,1\n")
    with pytest.raises(InputError, match=r"list\.csv: not a readable list"):
        read_csv_table(path, COLUMNS, "make it again", "list")
    path.write_text("image_id,count,share\na,1,1\n")
    assert len(read_csv_table(path, COLUMNS, "make it again", "list")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable list"),
        ("image_id,count\na,1\n", "no column 'share', only 'image_id, count'"),
        ("image_id,count,share\na,1,1,2\nb,1,1,2\n", "more values than columns"),
        ("image_id,count,share\na,1,1\nb,1,1,2\n", "not a readable list"),
        ("image_id,count,share\na,1.5,1\n", "image 'a' has count '1.5', not a whole number"),
        ("image_id,count,share\na,-1,1\n", "image 'a' has count '-1', not a whole number"),
        ("image_id,count,share\na,٣,1\n", "image 'a' has count '٣', not a whole number"),
        ("image_id,count,share\na,1\n", "image 'a' has share '', not a number"),
        ("image_id,count,share\na,1,nan\n", "image 'a' has share 'nan', not a number"),
        ("image_id,count,share\na,1,1e999\n", "image 'a' has share '1e999', not a number"),
        ("image_id,count,share\n" + "b" * 10_000 + ",1,1\n", "image_id 'b+' is absurdly long"),
        ("image_id,count,share\na,1," + "9" * 10_000 + "\n", "image 'a' has share '9+', not a number"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(InputError, match=rf"^some\.csv: {message}.*; make it again$") as error:
        read(text)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("image_id", ["a", "NA", "é ü", "a.b-c_1", "x" * 512])
def test_ids_that_can_stand_in_a_csv(image_id):
    check_image_id(image_id, "here")


@pytest.mark.parametrize("image_id", ["", " a", "a\t", "a,b", 'a"', "a\nb", "a\rb", "\udc80", "x" * 513])
def test_ids_that_cannot_stand_in_a_csv(image_id):
    with pytest.raises(InputError, match=r"here: the id .* cannot stand in a CSV") as error:
        check_image_id(image_id, "here")
    assert len(str(error.value)) < 200


@given(st.text(min_size=1, max_size=20))
def test_an_id_that_passes_comes_back_from_a_csv(image_id):
    try:
        check_image_id(image_id, "here")
    except InputError:
        return
    assert read(f"image_id,count,share\n{image_id},1,1\n")["image_id"].tolist() == [image_id]
