"""The search: the same counts as decoding anew, and choices that never see the images that they score."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.errors import InputError
from pipeline.nuclei.decoding import Decoding, decode_instances
from pipeline.nuclei.metric import count_matches
from pipeline.nuclei.targets import encode_targets
from pipeline.nuclei.tuning import (
    choose,
    count_decodings,
    cross_fit,
    decoding_grid,
    middle_decoding,
    score_decodings,
)
from pipeline.params import DecodeParams, TargetsParams

PARAMS = DecodeParams(
    seed_threshold=(0.4, 0.7), boundary_weight=(0.5, 1.0), mask_threshold=(0.3, 0.5), min_area_px=(1, 15, 40)
)


def draw_images(n):
    """Return (image_id, probabilities, label map) of images: targets under noise, and what they are the targets of."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(n):
        label_map = np.kron(rng.integers(0, 9, (5, 6 + i)), np.ones((9, 8), np.int32)).astype(np.uint16)
        targets = encode_targets(
            torch.from_numpy(label_map.astype(np.int32))[None],
            TargetsParams(boundary="contact", boundary_px=2, distance_px=4),
        )[0].numpy()
        noisy = np.clip(0.7 * targets + 0.3 * rng.random(targets.shape), 0, 1)
        probabilities = np.ascontiguousarray((noisy * 255).astype(np.uint8).transpose(1, 2, 0)[None])
        images.append((f"image{i}", probabilities, label_map))
    return images


def as_tuples(counts):
    return [[(m.n_truth, m.n_prediction, *m.true_positives.tolist()) for m in image] for image in counts]


def test_the_grid_is_all_combinations():
    choices = decoding_grid(PARAMS)
    assert len(set(choices)) == len(choices) == 2 * 2 * 2 * 3
    assert choices[:2] == [Decoding(0.4, 0.5, 0.3, 1), Decoding(0.4, 0.5, 0.3, 15)]
    assert {f.name for f in dataclasses.fields(Decoding)} == set(DecodeParams.model_fields)


def test_the_middle_decoding_is_one_of_them():
    assert middle_decoding(PARAMS) == Decoding(0.7, 1.0, 0.5, 15)
    assert middle_decoding(PARAMS) in decoding_grid(PARAMS)


def test_shared_work_counts_as_decoding_anew_does():
    images, choices = draw_images(3), decoding_grid(PARAMS)
    counts = count_decodings(images, choices, 1, len(images))
    anew = [
        [count_matches(truth, decode_instances(probabilities[0], choice)) for choice in choices]
        for _, probabilities, truth in images
    ]
    assert as_tuples(counts) == as_tuples(anew)
    assert len({tuple(column) for column in score_decodings(counts).T}) > 3  # the decodings do differ


def test_processes_give_what_one_process_gives():
    images, choices = draw_images(6)[::-1], decoding_grid(PARAMS)[::5]
    alone = count_decodings(images, choices, 1, len(images))
    assert as_tuples(count_decodings(iter(images), choices, 2, len(images))) == as_tuples(alone)


@pytest.mark.parametrize("workers", [1, 2])
def test_faults_name_the_image(workers):
    first, (name, probabilities, truth) = draw_images(2)
    with pytest.raises(InputError, match="image image1: the truth is"):
        count_decodings([first, (name, probabilities, truth[1:])], decoding_grid(PARAMS)[:1], workers, 2)


def test_the_best_mean_is_chosen_and_the_first_of_equals():
    assert choose(np.array([[0.2, 0.9, 0.5], [0.2, 0.0, 0.5]])) == 2
    assert choose(np.array([[0.1, 0.5, 0.3], [0.1, 0.3, 0.5]])) == 1


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_nothing_to_choose_from_is_refused(shape):
    with pytest.raises(InputError):
        choose(np.zeros(shape))


def test_a_fold_is_fitted_on_the_others():
    # Each fold's own favourite would be the candidate of its number.
    folds = np.array([0, 0, 1, 2, 2])
    scores = np.array([[0.9, 0.5, 0.4], [0.9, 0.5, 0.4], [0.1, 0.8, 0.0], [0.0, 0.1, 0.6], [0.0, 0.1, 0.6]])
    fit = cross_fit(scores, folds)
    assert fit.on_others == {0: 2, 1: 2, 2: 0}
    assert fit.on_all == int(np.argmax(scores.mean(axis=0)))


@given(npst.arrays(float, (9, 4), elements=st.floats(0, 1)), npst.arrays(float, (3, 4), elements=st.floats(0, 1)))
def test_a_folds_own_images_change_nothing_about_its_choice(scores, other):
    folds = np.repeat([0, 1, 2], 3)
    before = cross_fit(scores, folds).on_others
    for fold in range(3):
        changed = scores.copy()
        changed[folds == fold] = other
        assert cross_fit(changed, folds).on_others[fold] == before[fold]


def test_cross_fitting_needs_two_folds_and_a_fold_for_each_image():
    with pytest.raises(InputError, match="at least two"):
        cross_fit(np.ones((3, 2)), np.zeros(3, int))
    with pytest.raises(InputError, match="3 images"):
        cross_fit(np.ones((3, 2)), np.zeros(4, int))
