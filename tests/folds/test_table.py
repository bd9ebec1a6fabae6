"""Folds never split a group, balance what they can, and a table that leaks or does not fit is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.folds.table import (
    NO_FOLD,
    UNSCORED,
    add_unscored,
    assign_blocks,
    assign_folds,
    check_folds,
    describe_balance,
    find_strata,
    format_folds,
    measure_imbalance,
    name_groups,
    open_folded,
    read_folds,
)
from pipeline.params import FoldsParams


def make_params(folds=3, seed=5):
    return FoldsParams(groups="found", ids=tuple(range(folds)), seed=seed, nuclei_bins=3, tries=3)


def make_table(rng, images=120, group_size=4):
    ids = [f"{i:04d}" for i in range(images)]
    types = rng.choice(["fluorescence", "brightfield", "purple_on_white"], images, p=[0.7, 0.1, 0.2])
    table = pd.DataFrame({"image_id": ids, "image_type": types, "nuclei": rng.integers(1, 200, images)})
    groups = pd.Series([ids[i - i % group_size] for i in range(images)], index=ids, name="group")
    return table.sample(frac=1, random_state=1), groups


@pytest.fixture
def small():
    """Return a valid table of six images in three groups and three folds, and its groups."""
    ids = list("abcdef")
    folds = pd.DataFrame(
        {"image_id": ids, "group": list("aaccee"), "stratum": "x/0", "fold": np.array([0, 0, 1, 1, 2, 2])}
    )
    return folds, folds.set_index("image_id")["group"]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), folds=st.integers(2, 5), images=st.integers(20, 60), size=st.integers(1, 4))
def test_every_table_made_is_a_valid_one(seed, folds, images, size):
    table, groups = make_table(np.random.default_rng(seed), images, size)
    params = make_params(folds)
    made = assign_folds(table, groups, params)
    assert list(made.columns) == ["image_id", "group", "stratum", "fold"]
    assert list(made["image_id"]) == sorted(table["image_id"])
    check_folds(made, table["image_id"], groups, params.ids)


def test_the_same_seed_gives_the_same_table_whatever_the_order():
    table, groups = make_table(np.random.default_rng(0))
    first = assign_folds(table, groups, make_params())
    again = assign_folds(table.iloc[::-1], groups.iloc[::-1], make_params())
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(assign_folds(table, groups, make_params(seed=99)))


def test_images_nuclei_and_types_are_balanced():
    table, groups = make_table(np.random.default_rng(2), images=300, group_size=2)
    balance = describe_balance(assign_folds(table, groups, make_params()), table)
    assert np.ptp(balance["images"]) <= 8
    assert np.ptp(balance["nuclei"]) <= 0.15 * balance["nuclei"].mean()
    for image_type in ("fluorescence", "brightfield", "purple_on_white"):
        assert np.ptp(balance[image_type]) <= 6


def test_balance_and_imbalance_by_hand(small):
    folds, _ = small
    table = pd.DataFrame({"image_id": list("abcdef"), "image_type": list("ppqqpp"), "nuclei": [1, 2, 3, 0, 2, 1]})
    balance = describe_balance(folds, table)
    expected = {"fold": [0, 1, 2], "images": [2, 2, 2], "groups": [1, 1, 1], "nuclei": [3, 3, 3]}
    expected |= {"p": [2, 0, 2], "q": [0, 2, 0]}
    assert balance.to_dict("list") == expected
    # Even in images, nuclei and the stratum. p is 1.5, 0, 1.5 and q 0, 3, 0 times its even share.
    squares = [0.25, 1, 0.25, 1, 4, 1]
    assert measure_imbalance(folds, table) == pytest.approx(np.sqrt(sum(squares) / 15))


def test_strata_are_types_and_quantile_bins_and_rare_types_have_one_bin():
    table = pd.DataFrame({"image_type": ["a"] * 9 + ["b"] * 4, "nuclei": [*range(9), 1, 50, 90, 400]})
    strata = find_strata(table, make_params(3))
    assert strata.tolist() == ["a/0"] * 3 + ["a/1"] * 3 + ["a/2"] * 3 + ["b/0"] * 4


def test_as_many_groups_as_folds_fills_every_fold():
    ids = list("abcde")
    table = pd.DataFrame({"image_id": ids, "image_type": ["p", "q", "r", "p", "p"], "nuclei": 0})
    groups = pd.Series(["a", "b", "c", "c", "c"], index=ids)
    assert set(assign_folds(table, groups, make_params(3))["fold"]) == {0, 1, 2}


def test_more_folds_than_groups_is_refused(small):
    folds, groups = small
    table = folds.assign(image_type="p", nuclei=1)
    with pytest.raises(InputError, match=r"4 folds for 3 group.*folds\.ids to at most 3"):
        assign_folds(table, groups, make_params(4))


def test_an_image_without_group_is_refused(small):
    folds, groups = small
    with pytest.raises(InputError, match="'c' has no group"):
        assign_folds(folds.assign(image_type="p", nuclei=1), groups.drop("c"), make_params())
    with pytest.raises(InputError, match="'c' of the fold table has no group"):
        check_folds(folds, folds["image_id"], groups.drop("c"), (0, 1, 2))


def test_a_valid_table_passes(small):
    folds, groups = small
    check_folds(folds, list("abcdef"), groups, (0, 1, 2))
    check_folds(folds, list("fedcba"), None, (0, 1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(index=3), "'d' is missing"),
        (lambda f: f.assign(image_id=list("abcdez")), "'z' of the fold table is not among"),
        (lambda f: f.assign(image_id=list("abcdea")), "'a' is in the fold table twice"),
        (lambda f: f.assign(fold=[0, 0, 1, 1, 2, 3]), r"'f' is in fold 3, but folds.ids is \[0, 1, 2\]"),
        (lambda f: f.assign(fold=[0, 1, 1, 1, 2, 2]), r"group 'a' is split across folds \[0, 1\]"),
        (lambda f: f.assign(fold=[0, 0, 1, 1, 1, 1]), "fold 2 of folds.ids has no image"),
    ],
)
def test_a_wrong_table_is_refused_by_name(small, change, message):
    folds, groups = small
    for given_groups in (groups, None):
        with pytest.raises(InputError, match=message):
            check_folds(change(folds), list("abcdef"), given_groups, (0, 1, 2))


def test_a_table_that_renames_its_groups_does_not_hide_a_leak(small):
    folds, groups = small
    leaking = folds.assign(group=list("abcdef"), fold=[0, 1, 1, 0, 2, 2])
    check_folds(leaking, list("abcdef"), None, (0, 1, 2))
    with pytest.raises(InputError, match="group 'a' is split"):
        check_folds(leaking, list("abcdef"), groups, (0, 1, 2))


class TestUnscored:
    """g is of a group with the scored c and d of fold 1, h of none."""

    @pytest.fixture
    def folds(self, small):
        table = pd.DataFrame({"image_id": list("gabcdefh"), "scored": [0, 1, 1, 1, 1, 1, 1, 0]})
        return add_unscored(small[0], table, pd.concat([small[1], pd.Series({"g": "c", "h": "h"})]))

    def test_one_that_shows_what_is_held_out_has_its_fold_and_others_none(self, folds, small):
        assert folds["image_id"].tolist() == list("abcdefgh")
        assert folds["fold"].tolist() == [0, 0, 1, 1, 2, 2, 1, NO_FOLD]
        assert folds["stratum"].tolist() == ["x/0"] * 6 + [UNSCORED] * 2
        assert add_unscored(small[0], folds.assign(scored=1), small[1]).equals(small[0])

    def test_groups_have_the_names_that_they_have_without_them(self):
        """0 is of the group of c and d, 00 and 01 are of one of their own."""
        groups = pd.Series({"0": "0", "00": "00", "01": "00", "c": "0", "d": "0", "e": "e"}, name="group")
        named = name_groups(groups, ["e", "d", "c"])
        pd.testing.assert_series_equal(named, pd.Series(["c", "00", "00", "c", "c", "e"], groups.index, name="group"))

    def test_they_may_have_no_fold_and_scored_ones_must(self, folds):
        check_folds(folds, list("abcdefgh"), None, (0, 1, 2), "gh")
        with pytest.raises(InputError, match=r"image 'h' is in no fold, but folds\.ids is"):
            check_folds(folds, list("abcdefgh"), None, (0, 1, 2), "g")

    def test_a_fold_of_them_alone_is_refused(self, folds):
        with pytest.raises(InputError, match=r"fold 2 of folds\.ids has no image"):
            check_folds(folds, list("abcdefgh"), None, (0, 1, 2), "efgh")

    def test_one_that_would_be_learnt_from_beside_its_like_is_refused(self, folds):
        leaking = folds.assign(fold=folds["fold"].mask(folds["image_id"] == "g", NO_FOLD))
        with pytest.raises(InputError, match="group 'c' is split across folds"):
            check_folds(leaking, list("abcdefgh"), None, (0, 1, 2), "gh")

    def test_they_are_learnt_from_and_never_inside(self, make_split, make_folds):
        places = {"a": ("a", 0), "b": ("b", 1), "c": ("b", 1), "d": ("d", "")}
        folded = open_folded(make_split("abcd", unscored="cd"), make_folds(places), (0, 1))
        assert [folded.inside(fold).image_ids for fold in (0, 1)] == [["a"], ["b"]]
        assert [folded.outside(fold).image_ids for fold in (0, 1)] == [["b", "c", "d"], ["a", "d"]]
        assert folded.split.image_ids == folded.folds["image_id"].tolist() == folded.images["image_id"].tolist()
        assert folded.split.image_ids == ["a", "b"]


def test_read_folds_returns_what_was_written(small, tmp_path):
    folds = small[0].assign(image_id=["NA", "1e5", "007", "null", "d", "e"])
    assert format_folds(folds) == folds.to_csv(index=False)
    folds.loc[1, "fold"] = NO_FOLD
    (tmp_path / "folds.csv").write_text(format_folds(folds))
    assert "1e5,a,x/0,\n" in (tmp_path / "folds.csv").read_text()
    read = read_folds(tmp_path / "folds.csv")
    assert read.to_dict("list") == folds.to_dict("list")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,group,fold\na,a,0\n", "no column 'stratum'"),
        ("image_id,group,stratum,fold\na,a,x,1.5\n", "image 'a' has fold '1.5'"),
        ("image_id,group,stratum,fold\na,a,x,-1\n", "image 'a' has fold '-1'"),
        ("image_id,group,stratum,fold\na,a,x,٣\n", "image 'a' has fold '٣'"),
        ("image_id,group,stratum,fold\na,a,x," + "9" * 30 + "\n", "image 'a' has fold '999"),
        ("image_id,group,stratum,fold\n" + "a" * 10**5 + ",a,x,1\n", "image_id 'aaa.* is absurdly long"),
        ("image_id,group,stratum,fold\na,a,x,1,1\nb,b,x,0,0\n", "more values than columns"),
        ("image_id,group,stratum,fold\na,a,x,1\nb,b,x,0,0\n", r"not a readable fold table .*saw 5\); run"),
        ("", "not a readable fold table"),
        (None, "not a readable fold table"),
    ],
)
def test_a_bad_file_is_refused(text, message, tmp_path):
    path = tmp_path / "folds.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_folds(path)


@given(images=st.integers(2, 40), folds=st.integers(2, 6))
def test_blocks_are_neighbours_and_as_equal_as_can_be(images, folds):
    params = make_params(folds).model_copy(update={"groups": "blocks"})
    table = pd.DataFrame({"image_id": [f"s{number:02d}" for number in range(images)]})
    if images < folds:
        with pytest.raises(InputError, match=f"{folds} folds for {images} slice"):
            assign_blocks(table, params)
        return
    blocks = assign_blocks(table.sample(frac=1, random_state=0), params)
    check_folds(blocks, table["image_id"], None, params.ids)
    assert blocks["fold"].is_monotonic_increasing
    sizes = blocks["fold"].value_counts()
    assert sizes.max() - sizes.min() <= 1


PLACES = {"a": ("a", 0), "b": ("a", 0), "c": ("c", 1), "d": ("d", 1), "e": ("e", 2), "f": ("f", 2)}


def test_inside_and_outside_are_a_partition_for_every_fold(make_split, make_folds):
    folded = open_folded(make_split("fbdeca"), make_folds(PLACES), (0, 1, 2))
    assert {fold: folded.inside(fold).image_ids for fold in folded.ids} == {0: ["a", "b"], 1: ["c", "d"], 2: ["e", "f"]}
    for fold in folded.ids:
        inside, outside = folded.inside(fold), folded.outside(fold)
        assert sorted(inside.image_ids + outside.image_ids) == folded.split.image_ids
        assert len(inside) + len(outside) == len(folded.split) == 6
    assert folded.outside(1).image_ids == ["a", "b", "e", "f"]


def test_the_images_of_a_folded_split_have_the_columns_of_both_tables(make_split, make_folds):
    folded = open_folded(make_split("fbdeca"), make_folds(PLACES), (0, 1, 2))
    images = folded.images
    assert images["image_id"].tolist() == list("abcdef")
    assert images["fold"].tolist() == [0, 0, 1, 1, 2, 2]
    areas = [np.median(np.bincount(folded.split.label_map(name).ravel())[1:]) for name in "abcdef"]
    assert images["median_area_px"].tolist() == areas


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (PLACES | {"b": ("a", 1)}, r"group 'a' is split across folds \[0, 1\]"),
        ({name: place for name, place in PLACES.items() if name != "d"}, "'d' is missing"),
        (PLACES | {"z": ("z", 0)}, "'z' of the fold table is not among"),
        (PLACES | {"f": ("f", 3)}, "'f' is in fold 3"),
    ],
)
def test_a_folded_split_is_not_opened_with_a_table_that_leaks_or_does_not_fit(make_split, make_folds, places, message):
    prepared = make_split("abcdef")
    with pytest.raises(InputError, match=message):
        open_folded(prepared, make_folds(places), (0, 1, 2))


def test_a_fold_that_there_is_not_has_no_image(make_split, make_folds):
    assert len(open_folded(make_split("abcdef"), make_folds(PLACES), (0, 1, 2)).inside(7)) == 0
