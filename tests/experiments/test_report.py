import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest
from skimage.draw import disk
from skimage.segmentation import find_boundaries

from pipeline.errors import InputError
from pipeline.experiments.figures import (
    PICTURE_PX,
    encode_image,
    plot_learning_curves,
    plot_thresholds,
    trace_outlines,
)
from pipeline.experiments.report import Picture, choose_examples, format_score, write_report

DASH = "\N{EN DASH}"
CV = {"cv_map": 0.51234, "cv_std": 0.02, "cv_low": 0.48, "cv_high": 0.54, "pooled_ap": 0.6}
EXPECTED = pd.DataFrame(
    {
        "image_id": ["good", "doubtful", "unrated"],
        "expected": [0.7, 0.1, None],
        "low": [0.5, 0, None],
        "high": [0.9, 0.3, None],
    }
)
CARD = {
    "cv_map": 0.51234,
    "expected_lb": 0.4,
    "expected_lb_low": 0.35,
    "expected_lb_high": None,
    "lb_map": None,
    "seed": 2018,
    "threads": 2,
    "params": {"train": {"epochs": 3}},
    "digests": {"weights": "0f" * 32},
    "versions": {"torch": "1 & 2"},
}


def make_scores(rows):
    table = pd.DataFrame(rows, columns=["image_id", "fold", "image_type", "ap"])
    return table.assign(group=table["image_id"], **{f"ap{t}": table["ap"] * (1.2 - t / 100) for t in range(50, 100, 5)})


SCORES = make_scores([(f"im{k}", k % 2, "fluorescence" if k < 4 else "purple_on_white", k / 10) for k in range(6)])


def make_history(val_map):
    return pd.DataFrame({"epoch": [1, 2, 3], "step": [5, 10, 15], "lr": 0.1, "loss": [3, 2, 1], "val_map": val_map})


HISTORIES = {"0": make_history([np.nan, 0.3, 0.4]), "1": make_history([np.nan] * 3)}


def make_label_map(*centres):
    label_map = np.zeros((40, 60), np.uint16)
    for label, centre in enumerate(centres, start=1):
        label_map[disk(centre, 6, shape=label_map.shape)] = label
    return label_map


def make_picture(image_id):
    image = np.full((40, 60, 3), 30, np.uint8)
    return Picture(image_id, image, make_label_map((10, 10), (20, 40)), make_label_map((11, 10)))


def write(path, scores=SCORES, **changes):
    given = {"cv": CV, "card": CARD, "expected": EXPECTED, "histories": HISTORIES} | changes
    given.setdefault("submission", "submissions/submission.csv")
    given.setdefault("pictures", (make_picture(example.image_id) for example in choose_examples(scores)))
    write_report(path, scores, **given)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects tags, attributes and text; checks that elements nest."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


def test_best_median_and_worst_of_each_type():
    scores = make_scores(
        [(f"f{k}", 0, "fluorescence", ap) for k, ap in enumerate([0.2, 0.9, 0.5, 0.4])]
        + [("b", 1, "brightfield", 0.3), ("a", 1, "brightfield", 0.3), ("p", 1, "purple_on_white", 0.1)]
    )
    assert [(e.image_id, e.role, e.image_type, e.ap) for e in choose_examples(scores)] == [
        ("f1", "best", "fluorescence", 0.9),
        ("f2", "median", "fluorescence", 0.5),
        ("f0", "worst", "fluorescence", 0.2),
        ("a", "best", "brightfield", 0.3),
        ("b", "worst", "brightfield", 0.3),
        ("p", "only image", "purple_on_white", 0.1),
    ]


def read_words(page):
    """Return the text of a page, its words with a blank between them."""
    return " ".join(" ".join(Page(page).text).split())


def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path):
    text = write(tmp_path / "report.html")
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert all(value.startswith(("data:image/", "#")) for value in page.values("href") + page.values("xlink:href"))
    assert page.values("src") == []
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = {value[1:] for value in page.values("xlink:href")} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(ids)


def test_the_page_says_the_numbers(tmp_path):
    words = read_words(write(tmp_path / "report.html"))
    assert "0.512 ± 0.020 over folds · 95 % interval 0.480 .. 0.540" in words
    assert f"Expected on the leaderboard 0.400 0.350 .. {DASH} Test set not known yet" in words
    assert "Seed 2018 2 threads" in words
    assert "Submission: submissions/submission.csv" in words
    # Fold 0 holds images 0, 2 and 4: mean 0.2; the factors 1.2 - IoU are 0.7, 0.45 and 0.3. Folds differ by 0.1.
    assert "0 3 0.200 0.140 0.090 0.060 1 3 0.300" in words
    assert "all 6 0.250" in words
    assert "± over folds 0.071" in words
    assert "fluorescence 4 0.150" in words
    assert "purple on white 2 0.450" in words
    assert "truth prediction" in words
    assert "best: AP 0.300 · fold 1 · 2 nuclei, 1 predicted · brightened im3" in words


def test_equal_runs_give_the_same_bytes(tmp_path):
    """Also where a card says when and where: DVC would take the page of an equal run for another one."""
    local = {"wall_s": 512.4, "device": "cuda", "revision": "abc1234"}
    assert write(tmp_path / "a.html") == write(tmp_path / "b.html", card={**CARD, **local})


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"&"
    scores = make_scores([(evil, 0, evil, 0.1), ("b", 1, evil, 0.2)])
    text = write(tmp_path / "r.html", scores, submission=evil, card={**CARD, "params": {evil: evil}, "seed": evil})
    assert "<script" not in text
    assert "script" not in Page(text).tags
    assert evil in "".join(Page(text).text)


def test_a_run_without_history_and_with_a_known_score(tmp_path):
    text = write(tmp_path / "report.html", histories={}, card={**CARD, "lb_map": 0.4567})
    assert "Learning curves" not in text
    assert "0.457" in text


def test_the_test_images_of_the_lowest_expected_score_come_first(tmp_path):
    words = read_words(write(tmp_path / "r.html"))
    assert "Test images of lowest expected score" in words
    assert "doubtful 0.100 0.000 .. 0.300 good 0.700 0.500 .. 0.900" in words
    assert "unrated" not in words
    assert "lowest expected" not in read_words(write(tmp_path / "r.html", expected=EXPECTED[2:]))


def test_members_are_shown_where_there_are_several(tmp_path):
    """One that does not count adds nothing."""
    adds = {"adds": 0.012, "adds_low": -0.003, "adds_high": 0.03}
    members = {"main": {"weight": 2, "cv_map": 0.5, **adds}, "<b>": {"weight": 0, "cv_map": 0.4, **dict.fromkeys(adds)}}
    gain = {"best_member": "main", "gain": 0.01, "gain_low": 0.0, "gain_high": 0.02, "agreement": {"main, <b>": 0.75}}
    page = write(tmp_path / "report.html", cv={**CV, "members": members, **gain})
    text = " ".join(" ".join(Page(page).text).split())
    assert f"main 2 0.500 +0.012 -0.003 .. +0.030 <b> 0 0.400 {DASH} {DASH} .. {DASH}" in text
    assert "together, beyond main +0.010 +0.000 .. +0.020" in text
    assert "main, <b>: the nuclei of one score 0.750 against the other's." in text
    assert "Members" not in write(tmp_path / "report.html")


def test_unseen_acquisitions_are_shown_where_they_were_measured(tmp_path):
    for none in (CV, {**CV, "unseen_map": None, "unseen": {}}):
        assert "Unseen" not in write(tmp_path / "report.html", cv=none)
    measured = {**CV, "unseen_map": 0.375, "unseen": {"dark0": 0.25, "purple_on_white": 0.5, "<b>": 0.375}}
    words = read_words(write(tmp_path / "report.html", cv=measured))
    assert "Unseen acquisitions 0.375 mean over 3 clusters" in words
    assert "left out of training mAP dark0 0.250 purple on white 0.500 <b> 0.375 mean 0.375" in words


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "report.html"
    with pytest.raises(InputError, match="im3: no picture"):
        write(path, pictures=[])
    small = [make_picture(e.image_id)._replace(truth=np.zeros((5, 5), np.uint16)) for e in choose_examples(SCORES)]
    with pytest.raises(InputError, match="im3: image and label maps differ in size"):
        write(path, pictures=small)
    with pytest.raises(InputError, match="lacks cv_low"):
        write(path, cv={key: value for key, value in CV.items() if key != "cv_low"})
    with pytest.raises(InputError, match="run card lacks seed"):
        write(path, card={key: value for key, value in CARD.items() if key != "seed"})
    with pytest.raises(InputError, match="`unseen` is no AP"):
        write(path, cv={**CV, "unseen": {"dark0": "high"}})
    assert list(tmp_path.iterdir()) == []


def points_of(path):
    return [
        [tuple(map(int, point)) for point in re.findall(r"(\d+) (\d+)", piece)]
        for piece in path.removesuffix("z").split("z")
    ]


def test_outlines_by_hand():
    label_map = np.zeros((6, 8), np.uint16)
    label_map[1:4, 2:5] = 300
    label_map[5, 7] = 2
    outlines = points_of(trace_outlines(label_map))
    assert [set(points) for points in outlines] == [{(7, 5)}, {(2, 1), (2, 3), (4, 3), (4, 1)}]
    assert trace_outlines(np.zeros((4, 4), np.uint16)) == ""


def test_outlines_run_along_the_inner_boundary_and_touching_nuclei_have_one_each():
    label_map = make_label_map((15, 20), (15, 30), (2, 55))
    drawn = np.zeros(label_map.shape, np.uint8)
    outlines = points_of(trace_outlines(label_map))
    assert len(outlines) == 3
    for points in outlines:
        cv2.polylines(drawn, [np.array(points, np.int32)], True, 1)
    inner = np.zeros(label_map.shape, bool)
    for label in (1, 2, 3):
        # Beyond the image there is no nucleus, which skimage needs to see.
        inner |= find_boundaries(np.pad(label_map == label, 1), connectivity=1, mode="inner")[1:-1, 1:-1]
    np.testing.assert_array_equal(drawn.astype(bool), inner)


def decode(uri):
    return cv2.imdecode(np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)


def test_images_keep_their_colours_and_large_ones_shrink():
    image = np.zeros((1000, 2000, 3), np.uint8)
    image[:] = (200, 30, 100)
    shown = decode(encode_image(image))
    assert shown.shape == (PICTURE_PX // 2, PICTURE_PX, 3)
    assert np.abs(shown[100, 100].astype(int) - (100, 30, 200)).max() <= 3
    assert decode(encode_image(image[:33, :57])).shape == (33, 57, 3)


def test_charts_take_the_pages_colour_and_name_every_fold():
    for svg in (plot_thresholds(SCORES), plot_learning_curves(HISTORIES)):
        assert svg.startswith("<svg")
        assert svg.endswith("</svg>")
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "fold 0" in svg
        assert "fold 1" in svg
    assert "held-out" in plot_learning_curves(HISTORIES)
    for table in (HISTORIES["1"], HISTORIES["1"].drop(columns="val_map"), HISTORIES["1"].iloc[:1]):
        assert "held-out" not in plot_learning_curves({"0": table})
    with pytest.raises(InputError, match="no columns ap50"):
        plot_thresholds(SCORES[["image_id", "fold", "ap"]])


def test_numbers_as_they_are_read():
    assert [format_score(v) for v in (0.12345, None, float("nan"))] == ["0.123", DASH, DASH]
