"""The CSV files: what is written is valid, every fault is named with its line, scores are Kaggle's."""

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.nuclei.metric import score
from pipeline.nuclei.rle import encode_label_map
from pipeline.nuclei.solution import read_solution, read_solution_of, score_submission
from pipeline.nuclei.submission import read_label_maps, read_submission, validate_submission, write_submission

SHAPES = {"a": (3, 4), "b": (2, 2)}
SOLUTION_HEADER = "ImageId,EncodedPixels,Height,Width,Usage"


def draw_label_maps(seed=0):
    rng = np.random.default_rng(seed)
    grids = {f"image{i:02}": rng.integers(0, 6, (4, 5)) for i in range(8)}
    maps = {image_id: np.kron(grid, np.ones((5, 4), int)) for image_id, grid in grids.items()}
    return maps | {"image08": np.zeros((6, 7), int)}


def write(path, *lines, header="ImageId,EncodedPixels"):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def write_solution(path, label_maps, usage="Private"):
    rows = [
        f"{image_id},{text},{label_map.shape[0]},{label_map.shape[1]},{usage}"
        for image_id, label_map in label_maps.items()
        for text in encode_label_map(label_map) or [""]
    ]
    return write(path, *rows, header=SOLUTION_HEADER)


def score_files(submission, solution):
    return score_submission(read_submission(submission), read_solution(solution))


def test_writes_the_competitions_format(tmp_path):
    path = tmp_path / "new" / "submission.csv"
    label_map = np.array([[0, 2, 1], [2, 2, 0]])
    write_submission(path, iter([("a", label_map), ("b", np.zeros((2, 3), int))]))
    assert path.read_bytes() == b"ImageId,EncodedPixels\na,5 1\na,2 3\nb,\n"


def test_what_is_written_is_valid(tmp_path):
    maps, path = draw_label_maps(), tmp_path / "submission.csv"
    write_submission(path, maps.items())
    nuclei = sum(len(np.unique(m[m > 0])) for m in maps.values())
    assert validate_submission(path, {image_id: m.shape for image_id, m in maps.items()}) == nuclei
    assert list(read_submission(path).images) == list(maps)


def test_label_maps_come_back_as_written(tmp_path):
    maps, path = draw_label_maps(), tmp_path / "submission.csv"
    write_submission(path, maps.items())
    wanted = {image_id: maps[image_id].shape for image_id in ("image03", "image00", "image08")}
    found = dict(read_label_maps(path, wanted))
    assert list(found) == list(wanted)
    for image_id, label_map in found.items():
        # The same nuclei, numbered anew.
        pairs = set(zip(maps[image_id].ravel().tolist(), label_map.ravel().tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    with pytest.raises(InputError, match="image09"):
        list(read_label_maps(path, {"image09": (6, 7)}))


@pytest.mark.parametrize("ids", [["b", "a"], ["a", "a"], [""], ["a,b"], ['a"'], ["a\n"], [" a"]])
def test_ids_out_of_order_or_unfit_leave_no_file(tmp_path, ids):
    with pytest.raises(InputError):
        write_submission(tmp_path / "submission.csv", [(i, np.zeros((2, 2), int)) for i in ids])
    assert list(tmp_path.iterdir()) == []


def test_rows_of_an_image_may_stand_anywhere(tmp_path):
    path = write(tmp_path / "s.csv", "a,1 2", "b,", "a,5 2 8 1")
    assert validate_submission(path, SHAPES) == 2


def test_quotes_carriage_returns_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(b'\xef\xbb\xbfImageId,EncodedPixels\r\n"a","1 2"\r\nb,\r\n')
    assert validate_submission(path, SHAPES) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,1 2", "b,", "c,1 1"], "line 4: image c is not in the test set"),
        (["a,1 2"], "no row for image b"),
        (["a,1 2", "b,1 1 3"], "line 3: image b: 3 numbers"),
        (["a,4 1 1 1", "b,"], "line 2: image a: run 2"),
        (["a,0 1", "b,"], "line 2: image a: .*below 1"),
        (["a,1 0", "b,"], "line 2: image a: .*no length"),
        (["a,12 2", "b,"], "line 2: image a: .*leaves the image"),
        (["b,", "a,1 2", "a,2 1"], "line 4: image a: pixel 2 is in nucleus 1"),
        (["a,1 2", "b,", "a,"], "line 4: image a: an empty row beside others"),
        (["a,1 2", "b,", "a,1 2"], "line 4: image a: the same row as line 2"),
        (["a,", "a,", "b,"], "line 3: image a: the same row as line 2"),
        (["a,nan", "b,"], "line 2: image a: 'nan'"),
        (["a,1 2", "", "b,"], "line 3: '' is no row"),
        (["a", "b,"], "line 2: 'a' is no row"),
        (["a,1,2", "b,"], "line 2: 'a,1,2' is no row"),
        ([",1 2", "b,"], "line 2: ',1 2' is no row"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        validate_submission(write(tmp_path / "s.csv", *lines), SHAPES)


@pytest.mark.parametrize(
    "header", ["", "ImageId", "imageid,encodedpixels", "EncodedPixels,ImageId", "ImageId,EncodedPixels,x"]
)
def test_other_columns_are_refused(tmp_path, header):
    with pytest.raises(InputError, match=r"s\.csv: line 1: the columns are"):
        validate_submission(write(tmp_path / "s.csv", "a,", "b,", header=header), SHAPES)


def test_files_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes("ImageId,EncodedPixels\nä,1 2\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 at byte 22"):
        validate_submission(path, SHAPES)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="line 1"):
        validate_submission(path, SHAPES)
    with pytest.raises(InputError, match="cannot be read"):
        validate_submission(tmp_path / "missing.csv", SHAPES)


def test_ignored_rows_of_a_solution_are_dropped(tmp_path):
    lines = [
        "a,1 2,3,4,Private",
        "a,5 1,3,4,Public",
        "b,1 1,2,2,Ignored",
        "c,,2,5,Private",
        "a,9 1,3,4,IGNORED",
        "d,x,,,ignored",
    ]
    path = write(tmp_path / "solution.csv", *lines, header=SOLUTION_HEADER)
    truths = read_solution(path).truths
    assert {i: (t.shape, [row.text for row in t.rows]) for i, t in truths.items()} == {
        "a": ((3, 4), ["1 2", "5 1"]),
        "c": ((2, 5), []),
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,1 2,3,x,Private"], "line 2: 'x' is no size"),
        (["a,1 2,0,4,Private"], "line 2: '0' is no size"),
        (["a,1 2," + "9" * 5000 + ",4,Private"], "line 2: '99999999999999999999' is no size"),
        (
            ["a,1 2,2147483647,2147483647,Private"],
            r"line 2: image a is \(2147483647, 2147483647\); no more than 50000000",
        ),
        (["a" * 1000 + ",1 2,3,4,Private"], "line 2: 'aaa.* is no row"),
        (["a,1 2,3,4,Private", "a,5 1,4,3,Private"], r"line 3: image a is \(4, 3\) here and \(3, 4\) above"),
    ],
)
def test_faults_of_a_solution_are_named(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_solution(write(tmp_path / "s.csv", *lines, header=SOLUTION_HEADER))


def test_scores_are_those_of_the_label_maps(tmp_path):
    truths = draw_label_maps()
    predictions = {i: np.roll(m, 1, axis=1) for i, m in truths.items()}
    write_submission(tmp_path / "s.csv", predictions.items())
    result = score_files(tmp_path / "s.csv", write_solution(tmp_path / "solution.csv", truths))
    expected = [score(truths[i], predictions[i]) for i in truths]
    assert result.table["image_id"].tolist() == list(truths)
    assert list(result.table)[:3] == ["image_id", "ap", "ap50"]
    assert list(result.table)[-1] == "ap95"
    np.testing.assert_allclose(result.table["ap"], expected)
    np.testing.assert_allclose(result.table.loc[:, "ap50":].mean(axis=1), expected)
    assert result.mean == pytest.approx(np.mean(expected))
    assert result.not_scored == 0


def test_images_that_the_solution_does_not_score_are_counted(tmp_path):
    truths = draw_label_maps()
    write_submission(tmp_path / "s.csv", truths.items())
    scored = {i: truths[i] for i in ("image03", "image08")}
    result = score_files(tmp_path / "s.csv", write_solution(tmp_path / "solution.csv", scored))
    assert result.table["ap"].tolist() == [1, 1]
    assert result.not_scored == len(truths) - 2


def test_a_scored_image_must_be_in_the_submission(tmp_path):
    truths = draw_label_maps()
    write_submission(tmp_path / "s.csv", list(truths.items())[1:])
    with pytest.raises(InputError, match="no row for image image00"):
        score_files(tmp_path / "s.csv", write_solution(tmp_path / "solution.csv", truths))


def test_a_solution_that_scores_nothing_is_refused(tmp_path):
    truths = draw_label_maps()
    write_submission(tmp_path / "s.csv", truths.items())
    with pytest.raises(InputError, match="no row is scored"):
        score_files(tmp_path / "s.csv", write_solution(tmp_path / "solution.csv", truths, "Ignored"))


def test_true_masks_that_cover_an_image_many_times_are_refused(tmp_path):
    lines = ["a,1 10000,100,100,Private"] * 20
    solution = write(tmp_path / "solution.csv", *lines, header=SOLUTION_HEADER)
    with pytest.raises(InputError, match=r"solution\.csv: line 18: image a: its masks cover it 16 times"):
        score_files(write(tmp_path / "s.csv", "a,1 5"), solution)


def test_pairs_of_nuclei_without_number_are_refused(tmp_path):
    """9,000 of a pixel each, on both sides: a table of 650 MB."""
    numbers = range(1, 18_000, 2)
    lines = [f"a,{i} 1,100,200,Private" for i in numbers]
    solution = write(tmp_path / "solution.csv", *lines, header=SOLUTION_HEADER)
    with pytest.raises(InputError, match="image a: 9000 true nuclei and 9000 predicted ones"):
        score_files(write(tmp_path / "s.csv", *(f"a,{i} 1" for i in numbers)), solution)


LINES = st.lists(
    st.text(st.sampled_from(list("ab,0123456789 -.\"'\r\0\u2028٣é")), max_size=20)
    | st.builds("{},{} {}".format, st.sampled_from("abc"), st.integers(-1, 15), st.integers(-1, 15))
    | st.builds(
        "{},{} {},{},{},{}".format,
        st.sampled_from("abc"),
        st.integers(0, 15),
        st.integers(0, 15),
        st.integers(0, 2**40),
        st.integers(0, 5),
        st.sampled_from(["Private", "Ignored"]),
    ),
    max_size=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES)
def test_whatever_the_lines_a_submission_is_valid_or_refused(tmp_path, lines):
    path = write(tmp_path / "s.csv", *lines)
    with contextlib.suppress(InputError):
        nuclei = validate_submission(path, SHAPES)
        assert sum(len(np.unique(m[m > 0])) for _, m in read_label_maps(path, SHAPES)) == nuclei


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES)
def test_whatever_the_lines_a_solution_scores_or_is_refused(tmp_path, lines):
    solution = write(tmp_path / "solution.csv", *lines, header=SOLUTION_HEADER)
    with contextlib.suppress(InputError):
        truths = read_solution(solution).truths
        result = score_files(write(tmp_path / "s.csv", "a,1 2", "b,", "c,"), solution)
        assert result.table["image_id"].tolist() == sorted(truths)
        assert 0 <= result.mean <= 1


def test_true_masks_that_overlap_keep_all_their_pixels(tmp_path):
    solution = write(tmp_path / "solution.csv", "a,1 6,1,12,Private", "a,6 5,1,12,Private", header=SOLUTION_HEADER)
    submission = write(tmp_path / "s.csv", "a,1 5", "a,6 5")
    # 5 of 6 pixels, 0.833 (a match up to 0.80), and all of 5.
    expected = [1.0] * 7 + [1 / 3] * 3
    table = score_files(submission, solution).table
    np.testing.assert_allclose(table.loc[0, "ap50":].to_numpy(float), expected)


def test_one_prediction_matches_one_of_two_equal_true_masks(tmp_path):
    solution = write(tmp_path / "solution.csv", "a,1 6,1,12,Private", "a,1 6,1,12,Private", header=SOLUTION_HEADER)
    assert score_files(write(tmp_path / "s.csv", "a,1 6"), solution).mean == 0.5


def test_the_solution_of_a_test_set(tmp_path):
    maps = draw_label_maps()
    path = write_solution(tmp_path / "solution.csv", maps)
    solution = read_solution_of(path, list(maps))
    assert solution.path == path
    assert solution.truths == read_solution(path).truths
    # A solution may score a part of the test set, as that of stage 2 does.
    assert read_solution_of(path, [*maps, "other"]).truths.keys() == maps.keys()


def test_the_solution_of_other_images_is_refused(tmp_path):
    maps = draw_label_maps()
    path = write_solution(tmp_path / "solution.csv", maps)
    with pytest.raises(
        InputError, match=r"solution\.csv: image image00 is none of the test images; set data\.solution"
    ):
        read_solution_of(path, list(maps)[1:])


def test_where_no_solution_is_known_there_is_none(tmp_path):
    assert read_solution_of(tmp_path / "missing.csv", ["a"]) is None
    assert read_solution_of(tmp_path, ["a"]) is None
    # Without test images nothing is scored, and the file, here no solution at all, is not read.
    assert read_solution_of(write(tmp_path / "s.csv", "a,1 2"), []) is None


def test_a_submission_that_was_read_needs_its_file_no_more(tmp_path):
    maps, path = draw_label_maps(), tmp_path / "s.csv"
    write_submission(path, maps.items())
    submission, solution = read_submission(path), read_solution(write_solution(tmp_path / "solution.csv", maps))
    for file in tmp_path.iterdir():
        file.unlink()
    submission.check({image_id: label_map.shape for image_id, label_map in maps.items()})
    assert submission.count_nuclei() == sum(len(np.unique(m[m > 0])) for m in maps.values())
    assert score_submission(submission, solution).mean == 1
