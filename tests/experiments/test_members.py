"""What members are worth, by hand: one that is right, one that finds half, one that finds nothing."""

import numpy as np
import pandas as pd
import pytest

from pipeline.experiments.members import describe_members, format_members
from pipeline.folds.blend import Members, Weights
from pipeline.folds.cross_validation import cross_validate_blend
from pipeline.folds.finder import CandidateFinder
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.metric import average_precision

NAMES = "abcd"
FOLD_OF = {name: number % 2 for number, name in enumerate(NAMES)}


@pytest.fixture
def split(make_split):
    return PreparedSplit.open(make_split(NAMES))


def find(label_map, kept):
    """Return probabilities of the nuclei whose ids `kept` says."""
    foreground = np.where((label_map > 0) & kept(label_map), 255, 0)
    return np.stack([foreground, 0 * foreground, foreground], axis=-1).astype(np.uint8)[None]


def describe(split, params, tmp_path, weights, **predictors):
    """Return what is said of members, and the ensemble's scores."""
    stored = {
        name: {image_id: (find(label_map, kept), 1.0) for image_id, label_map in split.label_maps()}
        for name, kept in predictors.items()
    }
    members = Members(stored, dict.fromkeys(stored, 17.0), 17.0)
    finder = CandidateFinder((1.0,), 17.0, params.select.model_copy(update={"trees": 0}))
    path = tmp_path / "candidates.npz"
    held_out = cross_validate_blend(members, weights, split, FOLD_OF, params.decode, finder, path, 1)
    scores = pd.DataFrame({"image_id": split.image_ids, "group": split.image_ids})
    scores["fold"] = scores["image_id"].map(FOLD_OF)
    scores["ap"] = [average_precision(matches).mean() for matches in held_out.decoded]
    assert [name for name, _, _ in held_out.found] == split.image_ids
    cv = describe_members(
        members, weights, scores, held_out.decoded, split, params.decode, finder, params.evaluate, path, 1
    )
    assert [each.name for each in tmp_path.iterdir() if each.name != "prepared"] == ["candidates.npz"]
    return cv, scores["ap"].mean()


def every(label_map):
    return label_map > 0


def even(label_map):
    return label_map % 2 == 0


def none(label_map):
    return label_map < 0


def test_of_one_member_nothing_is_said(split, params, tmp_path):
    weights = Weights({"right": 1}, {0: {"right": 1}, 1: {"right": 1}})
    assert describe(split, params, tmp_path, weights, right=every)[0] == {}


def test_each_alone_what_it_adds_and_how_far_they_agree(split, params, tmp_path):
    picks = {"right": 2, "half": 1}
    weights = Weights(picks, dict.fromkeys((0, 1), picks))
    cv, score = describe(split, params, tmp_path, weights, right=every, half=even, blind=none)
    alone = {name: own["cv_map"] for name, own in cv["members"].items()}
    assert alone["right"] == pytest.approx(1)
    assert 0.3 < alone["half"] < 0.7
    assert alone["blind"] == 0
    assert [own["weight"] for own in cv["members"].values()] == [2, 1, 0]
    # Without `right` what is left is `half`; one that does not count adds nothing.
    assert cv["members"]["right"]["adds"] == pytest.approx(score - alone["half"])
    assert cv["members"]["half"]["adds"] == pytest.approx(score - 1)
    assert cv["members"]["blind"]["adds"] is None
    assert cv["best_member"] == "right"
    assert cv["gain"] == pytest.approx(score - 1)
    # What one finds and the other does not is wrong whichever is taken for true.
    assert cv["agreement"]["right, half"] == pytest.approx(alone["half"])
    assert cv["agreement"]["right, blind"] == 0
    lines = format_members(cv).splitlines()
    assert lines[0].split() == ["member", "weight", "alone", "adds"]
    assert lines[3].split() == ["blind", "0", "0.000", "-"]
    assert lines[-1].startswith(f"together {score - 1:+z.3f} beyond the best alone, right (95 % interval")


def test_what_alone_counts_for_a_fold_cannot_be_left_out(split, params, tmp_path):
    weights = Weights({"right": 1, "half": 1}, {0: {"right": 1}, 1: {"right": 1, "half": 1}})
    cv, _ = describe(split, params, tmp_path, weights, right=every, half=even)
    assert cv["members"]["right"]["adds"] is None
    assert cv["members"]["half"]["adds"] is not None
