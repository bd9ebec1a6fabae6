"""The yardstick: what is left out of training, what a probe does to an image, and what is made of the rows."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.experiments.calibration import SIGNALS
from pipeline.experiments.expectation import read_known
from pipeline.folds.table import FoldedSplit
from pipeline.studies import acquisitions, expected, left_out, rows, scoring, unseen, yardstick
from pipeline.studies.left_out import make_case, make_probes
from pipeline.studies.probes import PROBES, blur, crowd, dim, median_diameter, recolour, rescale
from pipeline.studies.study import load_data
from tests.faults.workspace import make_archives
from tests.tiny import tiny_params


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    make_archives(folder)
    return folder


@pytest.fixture
def folded(archives: Path, tmp_path: Path) -> FoldedSplit:
    """Return the eight images of a small checkout, each a group of its own."""
    return load_data(archives, tmp_path / "data", tiny_params())


def tabulate(folded: FoldedSplit, clusters: str, looks_like: dict[int, str] | None = None) -> pd.DataFrame:
    """Return a table of acquisitions: a letter for each image in its order."""
    table = pd.DataFrame({"image_id": folded.split.image_ids, "cluster": list(clusters), "looks_like": ""})
    for index, names in (looks_like or {}).items():
        table.loc[index, "looks_like"] = names
    return table


class TestCase:
    def test_a_cluster_is_left_out_with_what_looks_like_it(self, folded: FoldedSplit) -> None:
        ids = folded.split.image_ids
        case = make_case(folded, tabulate(folded, "aabbbbbb", {2: "c a", 3: "c"}), "a", tiny_params())
        assert list(case.scored) == ids[:2]
        used = set(case.learnt.image_ids) | set(case.seen.image_ids)
        assert used == set(ids[3:])
        assert not set(case.learnt.image_ids) & set(case.seen.image_ids)
        assert set(case.seen.image_ids) <= set(folded.inside(0).image_ids)
        for name, (image, truth) in case.scored.items():
            assert np.array_equal(image, folded.split.image(name))
            assert np.array_equal(truth, folded.split.label_map(name))

    def test_a_cluster_that_most_of_the_left_out_images_look_like_is_left_out(self, folded: FoldedSplit) -> None:
        ids = folded.split.image_ids
        table = tabulate(folded, "aaabbccc", {0: "b", 1: "b c", 2: ""})
        case = make_case(folded, table, "a", tiny_params())
        assert {*case.learnt.image_ids, *case.seen.image_ids} == set(ids[5:])

    def test_what_shares_a_field_with_the_cluster_is_left_out(self, folded: FoldedSplit) -> None:
        folds = folded.table.copy()
        folds.loc[folds["image_id"] == folded.split.image_ids[7], "group"] = folds.loc[0, "group"]
        case = make_case(folded._replace(table=folds), tabulate(folded, "abbbbbbb"), "a", tiny_params())
        assert folded.split.image_ids[7] not in {*case.learnt.image_ids, *case.seen.image_ids}

    def test_probes_are_of_images_that_are_neither_learnt_nor_seen(
        self, folded: FoldedSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(left_out, "_SEEN", 2)
        case = make_probes(folded, tiny_params())
        probed = {name.partition("/")[2] for name in case.scored}
        assert probed
        assert not probed & {*case.learnt.image_ids, *case.seen.image_ids}
        assert {name.partition("/")[0] for name in case.scored} == {
            name for name, probe in PROBES.items() if "fluorescence" in probe.image_types
        }

    def test_left_out_images_are_probed_as_their_type_allows(self, folded: FoldedSplit) -> None:
        table = tabulate(folded, "aaabbbbb")
        case = left_out.make_case(folded, table, "a", tiny_params())
        dark = left_out.probe_case(case, dict.fromkeys(case.scored, "fluorescence"))
        probes = {name.partition("/")[0] for name in dark.scored}
        assert probes == {name for name, probe in PROBES.items() if "fluorescence" in probe.image_types}
        assert {name.partition("/")[2] for name in dark.scored} == set(case.scored)
        assert dark.learnt is case.learnt
        assert not left_out.probe_case(case, dict.fromkeys(case.scored, "brightfield")).scored

    def test_an_unknown_cluster_and_a_table_of_other_images_are_named(self, folded: FoldedSplit) -> None:
        table = tabulate(folded, "aabbbbbb")
        with pytest.raises(InputError, match=r"'z': no such cluster; acquisitions\.csv has a, b"):
            make_case(folded, table, "z", tiny_params())
        with pytest.raises(InputError, match=f"lacks the image {folded.split.image_ids[3]}; run `python -m"):
            make_case(folded, table.drop(index=3), "a", tiny_params())


def disc_image() -> tuple[np.ndarray, np.ndarray]:
    """Return a dark image (64, 96, 3) with three nuclei, and its label map."""
    labels = np.zeros((64, 96), np.int32)
    for number, (row, column) in enumerate([(16, 20), (40, 30), (30, 70)], 1):
        cv2.circle(labels, (column, row), 8, number, -1)
    noise = np.random.default_rng(0).integers(0, 9, (64, 96, 1))
    return np.repeat(noise + np.where(labels > 0, 200, 10)[..., None], 3, axis=2).astype(np.uint8), labels


class TestProbes:
    @pytest.mark.parametrize("name", PROBES)
    def test_image_and_labels_fit_and_the_same_comes_again(self, name: str) -> None:
        image, labels = disc_image()
        before = image.copy()
        probed, truth = PROBES[name].apply(image, labels)
        assert probed.dtype == np.uint8
        assert probed.shape == (*truth.shape, 3)
        assert np.array_equal(image, before)
        assert np.array_equal(probed, PROBES[name].apply(image, labels)[0])

    def test_recoloured_images_have_the_colours_asked_for(self) -> None:
        image = cv2.GaussianBlur(np.random.default_rng(0).integers(90, 220, (64, 64, 3), np.uint8), (0, 0), 2)
        probed, _ = recolour(image, np.zeros((64, 64), int), mean=(60.0, 20.0, -10.0), deviation=(6.0, 3.0, 2.0))
        lab = cv2.cvtColor(probed.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
        assert np.allclose(lab.mean(0), (60, 20, -10), atol=0.5)
        assert np.allclose(lab.std(0), (6, 3, 2), atol=0.5)

    def test_a_crowd_is_brighter_where_nuclei_are_and_keeps_every_nucleus_or_its_cover(self) -> None:
        image, labels = disc_image()
        crowded, truth = crowd(image, labels)
        assert len(np.unique(truth)) - 1 > 3
        assert ((crowded.max(axis=2) > 100) == (truth > 0)).all()
        assert (crowded >= image).all()

    def test_rescaling_changes_areas_and_no_number_of_nuclei(self) -> None:
        image, labels = disc_image()
        for zoom in (0.5, 2.0):
            probed, truth = rescale(image, labels, zoom=zoom)
            assert np.array_equal(np.unique(truth), [0, 1, 2, 3])
            assert (truth > 0).sum() == pytest.approx((labels > 0).sum() * zoom**2, rel=0.1)
            assert probed.shape[:2] == (64 * zoom, 96 * zoom)

    def test_dimmed_and_blurred_images_show_less(self) -> None:
        image, labels = disc_image()
        assert dim(image, labels)[0].max() < 40
        sharp, soft = (
            np.abs(np.diff(each[..., 0].astype(int), axis=1)).max() for each in (image, blur(image, labels)[0])
        )
        assert soft < 0.6 * sharp

    def test_the_diameter_of_the_median_nucleus(self) -> None:
        labels = np.zeros((40, 40), int)
        labels[:10, :10], labels[20:22, 20:22], labels[30:, 30:] = 1, 5, 7
        assert median_diameter(labels) == pytest.approx(2 * np.sqrt(100 / np.pi))
        assert median_diameter(np.zeros((4, 4), int)) == 0


class TestRows:
    def test_a_row_by_hand(self) -> None:
        images = pd.DataFrame(
            {
                "image_id": ["s", "t", "a", "b", "c"],
                "is_seen": [True, True, False, False, False],
                "ap": [0.2, 0.4, 0.1, 0.2, 0.6],
                "octaves": [0.5, -0.1, -1.0, 2.0, 0.5],
            }
        )
        (row,) = unseen.summarize(images, "dark")
        assert row["cluster"] == "dark"
        assert (row["images"], row["seen_images"]) == (3, 2)
        assert row["ap"] == pytest.approx(0.3)
        assert row["seen_ap"] == pytest.approx(0.3)
        assert row["octaves"] == 1.0
        assert row["seen_octaves"] == pytest.approx(0.3)
        images["image_id"] = ["s", "t", "probe_pink/a", "probe_pale/b", "probe_pale/c"]
        rows = {row["cluster"]: row["ap"] for row in unseen.summarize(images, "probes")}
        assert rows == {"probe_pink": pytest.approx(0.1), "probe_pale": pytest.approx(0.4)}

    def test_settings_are_compared_on_common_clusters(self) -> None:
        parts = [("default", "a", 0.1), ("default", "b", 0.2), ("default", "c", 0.9), ("default", "probe_pale", 0.5)]
        parts += [("new", "a", 0.3), ("new", "b", 0.2), ("new", "probe_pale", 0.7)]
        found = pd.DataFrame(parts, columns=["setting", "cluster", "ap"]).assign(
            length="short", learnt_images=8, seen_ap=[0.6, 0.6, 0.3, 0.0, 0.6, 0.3, 0.0]
        )
        table = unseen.compare_settings(found, "default", 200, 0).set_index("setting")
        assert table.loc["default", "unseen_map"] == pytest.approx(0.4)
        assert table.loc["new", "unseen_map"] == pytest.approx(0.25)
        assert table["clusters"].tolist() == [3, 2]
        assert table["probe_map"].tolist() == [0.5, 0.7]
        assert table.loc["default", "seen_map"] == pytest.approx(0.45)  # clusters a and b share a network
        assert table.loc["new", ["common", "here", "default"]].tolist() == pytest.approx([2, 0.25, 0.15])
        assert "difference" not in table  # two clusters are too few to say

    def test_clusters_are_set_beside_a_cross_validation_of_their_images(self) -> None:
        parts = [("old", "b", 0.5), ("old", "a", 0.1), ("new", "a", 0.2), ("new", "probe_pale", 0.9)]
        found = pd.DataFrame(parts, columns=["setting", "cluster", "ap"]).assign(length="short")
        scores = pd.DataFrame({"image_id": ["1", "2", "3"], "ap": [0.2, 0.6, 0.8]})
        places = pd.DataFrame({"image_id": ["1", "2", "3"], "cluster": ["a", "a", "b"]})
        table = unseen.tabulate_clusters(found, scores, places)
        assert table.columns.tolist() == ["cluster", "cv", "old, short", "new, short"]
        assert table["cluster"].tolist() == ["a", "b"]
        assert table["cv"].tolist() == pytest.approx([0.4, 0.8])
        assert table["new, short"].tolist() == pytest.approx([0.2, np.nan], nan_ok=True)

    def test_lengths_are_ranked_where_a_cluster_has_four_settings_of_both(self) -> None:
        """Of four settings the best two change places: rho is 1 - 6 x 2 / (4 x 15). A fifth has one length only."""
        short, full = [0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.3, 0.6, 0.5]
        measured = [("short", "a", short), ("full", "a", full), ("short", "b", short), ("full", "b", full[:3])]
        measured += [("short", "probe_pale", short), ("full", "probe_pale", full[::-1])]
        table = pd.DataFrame(
            [
                {"setting": f"s{index}", "length": length, "cluster": cluster, "ap": ap}
                for length, cluster, scores in measured
                for index, ap in enumerate(scores)
            ]
        )
        ranked = unseen.rank_lengths(table)
        assert ranked[["cluster", "settings"]].to_numpy().tolist() == [["a", 4], ["probe_pale", 4]]
        assert ranked["rank_correlation"].tolist() == pytest.approx([0.8, -0.8])
        assert unseen.rank_lengths(table[table["length"] == "short"]).empty

    def test_a_difference_on_six_clusters_has_an_interval(self) -> None:
        parts = [("old", f"dark{i}", 0.2, i) for i in range(6)] + [("new", f"dark{i}", 0.3, i) for i in range(6)]
        found = pd.DataFrame(parts, columns=["setting", "cluster", "ap", "seen_ap"]).assign(
            length="short", learnt_images=8
        )
        table = unseen.compare_settings(found, "old", 200, 0).set_index("setting")
        assert table.loc["new", ["difference", "low", "high"]].tolist() == pytest.approx([0.1, 0.1, 0.1])


def test_acquisitions_are_told_apart_by_colour_brightness_and_texture(
    folded: FoldedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    split = folded.split
    ids = split.image_ids
    light = dict.fromkeys(ids[6:7], "purple_on_white") | dict.fromkeys(ids[7:], "purple_on_purple")
    split.table["image_type"] = [light.get(name, "fluorescence") for name in ids]
    coarse = [cv2.GaussianBlur(rng.integers(0, 255, (64, 64, 3), np.uint8), (0, 0), 6) for _ in range(3)]
    fine = [rng.integers(0, 30, (64, 64, 3), np.uint8) for _ in range(3)]
    pictures = dict(zip(ids, [*coarse, *fine], strict=False))
    monkeypatch.setattr(split, "image", pictures.get)
    monkeypatch.setattr(acquisitions, "_DARK_CLUSTERS", 2)
    table = acquisitions.find_acquisitions(split)
    assert table["cluster"].tolist() == ["dark0"] * 3 + ["dark1"] * 3 + ["purple_on_white", "purple_on_purple"]
    assert table["looks_like"].tolist() == [""] * 6 + ["purple_on_purple", "purple_on_white"]


def test_the_command_measures_each_cluster_once_and_goes_on(
    archives: Path, folded: FoldedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for module in (unseen, rows):
        monkeypatch.setattr(module, "ROWS", tmp_path / "rows.csv")
    monkeypatch.setattr(acquisitions, "TABLE", tmp_path / "table.csv")
    for module in (yardstick, rows):
        monkeypatch.setattr(module, "compose", lambda _name, _changes=(): tiny_params())
    tabulate(folded, "aaabbbbb").to_csv(tmp_path / "table.csv", index=False)
    arguments = argparse.Namespace(
        data=archives, scratch=tmp_path / "data", threads=1, setting="default", changes=[], clusters=["a"],
        length="short", as_is=False, cv=None, out=tmp_path / "unseen.csv", against="default",
    )  # fmt: skip
    unseen.run(arguments)
    measured = pd.read_csv(tmp_path / "rows.csv")
    assert measured["cluster"].tolist() == ["a"]
    assert measured["ap"].between(0, 1).all()
    assert measured["device"].tolist() == ["cpu"]
    # What the score to expect is learnt from: the same images of that cluster, and more of them.
    unseen_out, arguments.out = arguments.out, tmp_path / "expected.csv"
    arguments.clusters = None
    expected.run(arguments)
    images = pd.read_csv(tmp_path / "expected.csv")
    plain = images[(images["cluster"] == "a") & ~images["is_seen"] & ~images["image_id"].str.contains("/")]
    assert plain["ap"].mean() == pytest.approx(measured["ap"].item(), abs=1e-3)
    assert set(images["cluster"]) == {"a", "b"}
    assert images["image_id"].str.startswith("probe_blurred/").any()
    assert images.columns.tolist() == ["settings", "cluster", "image_id", "is_seen", "ap", *SIGNALS]
    # All of it is kept: nothing is predicted again.
    with monkeypatch.context() as without:
        without.setattr(scoring, "_Finder", None)
        expected.run(arguments)
        (tmp_path / "expected.csv").unlink()
        expected.run(arguments)
    # Rows of other parameters, or of nobody knows which, are left alone, and judged when asked for.
    for foreign in (images.assign(settings="a1"), images.drop(columns="settings")):
        foreign.to_csv(tmp_path / "expected.csv", index=False)
        with pytest.raises(InputError, match="its networks were trained with other parameters"):
            expected.run(arguments)
        arguments.as_is = True
        expected.run(arguments)
        arguments.as_is = False
    # Runs learn from the committed file; it is of longer trainings.
    arguments.out = expected.KNOWN
    with pytest.raises(InputError, match="--length short: name another --out"):
        expected.run(arguments)
    arguments.clusters, arguments.out = ["a"], unseen_out
    kept = (tmp_path / "rows.csv").read_bytes()
    monkeypatch.setattr(unseen, "score_case", None)
    unseen.run(arguments)
    assert (tmp_path / "rows.csv").read_bytes() == kept
    assert "default" in capsys.readouterr().out
    arguments.changes = ["augment=weak"]
    with pytest.raises(InputError, match="--setting default was measured with -S nothing; give these changes another"):
        unseen.run(arguments)
    arguments.as_is = True
    unseen.run(arguments)
    assert (tmp_path / "rows.csv").read_bytes() == kept


def test_the_committed_cases_foretell_one_another_better_than_a_constant_does() -> None:
    judged = expected.judge(read_known(Path(__file__).resolve().parents[2] / expected.KNOWN))
    assert len(judged) >= 30
    error = (judged["ap"] - judged["expected"]).abs().mean()
    assert error < (judged["ap"] - judged["constant"]).abs().mean() * 2 / 3
    assert judged["ap"].between(judged["low"], judged["high"]).mean() >= 0.9
