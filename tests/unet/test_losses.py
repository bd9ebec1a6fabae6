"""Loss terms against numbers worked out by hand on four pixels."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torchvision.ops import sigmoid_focal_loss

from pipeline.errors import InputError
from pipeline.params import LossParams
from pipeline.unet.losses import TERMS, bce_loss, build_loss, distance_loss, focal_loss, soft_dice_loss

# Probabilities 3/4, 1/2, 1/4, 1/2: logits log(3), 0, -log(3), 0.
LOGITS = torch.tensor([[[[math.log(3), 0.0], [-math.log(3), 0.0]]]])
TARGETS = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])


WEIGHTS = {"bce": 1.0, "dice": 1.0, "focal": 0.0, "distance": 1.0}


def loss_params(channels=(1.0, 1.0), gamma=2.0, **weights):
    terms = {name: {"weight": weight} for name, weight in (WEIGHTS | weights).items()}
    terms["focal"]["gamma"] = gamma
    maps = {"weight_map": False, "weight_map_w0": 10.0, "weight_map_sigma_px": 5.0}
    return LossParams(terms=terms, channels=channels, **maps)


def combine(logits, targets, pixel_weights=None, **changes):
    return build_loss(loss_params(**changes))(logits, targets, pixel_weights)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 6, 5, generator=generator, requires_grad=True)
    return logits, (torch.rand(2, 3, 6, 5, generator=generator) > 0.5).float()


def test_bce_by_hand():
    # -log of 3/4, 1/2, 1/4, 1/2.
    assert bce_loss(LOGITS, TARGETS).tolist() == pytest.approx([math.log(4 / 3 * 2 * 4 * 2) / 4])


def test_bce_weighs_pixels():
    weights = torch.tensor([[[[2.0, 0.0], [0.0, 1.0]]]])
    assert bce_loss(LOGITS, TARGETS, weights).tolist() == pytest.approx([(2 * math.log(4 / 3) + math.log(2)) / 4])


def test_dice_by_hand():
    # sum(p t) = 3/4 + 1/2 + 1/4 = 1.5, sum(p) = 2, sum(t) = 3.
    assert soft_dice_loss(LOGITS, TARGETS).tolist() == pytest.approx([1 - (2 * 1.5 + 1) / (2 + 3 + 1)])


def test_dice_of_an_empty_channel_is_zero_when_nothing_is_predicted():
    nothing = torch.full((1, 1, 2, 2), -100.0)
    assert soft_dice_loss(nothing, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(0, abs=1e-6)


def test_dice_is_over_the_batch():
    logits, targets = batch()
    joined = [torch.cat(list(x), dim=1)[None] for x in (logits, targets)]
    assert soft_dice_loss(logits, targets).tolist() == pytest.approx(soft_dice_loss(*joined).tolist())


def test_focal_by_hand():
    # (1 - p_t)^2 of 1/16, 1/4, 9/16, 1/4.
    expected = (math.log(4 / 3) / 16 + math.log(2) / 4 + 9 * math.log(4) / 16 + math.log(2) / 4) / 4
    assert focal_loss(LOGITS, TARGETS, gamma=2.0).tolist() == pytest.approx([expected])


def test_focal_agrees_with_torchvision_and_with_bce():
    logits, targets = batch()
    theirs = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=1.5).mean(dim=(0, 2, 3))
    assert focal_loss(logits, targets, gamma=1.5).tolist() == pytest.approx(theirs.tolist(), rel=1e-5)
    assert focal_loss(logits, targets, gamma=0.0).tolist() == pytest.approx(
        bce_loss(logits, targets).tolist(), rel=1e-5
    )


def test_distance_by_hand():
    # |3/4 - 1| + |1/2 - 1| + |1/4 - 1| + |1/2 - 0| = 2.
    assert distance_loss(LOGITS, TARGETS).tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("scale", [0.0, 1e4, -1e4])
def test_gradients_are_finite_at_the_extremes(gamma, scale):
    logits = torch.full((1, 3, 2, 2), scale, requires_grad=True)
    targets = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]).expand(1, 3, 2, 2)
    total, _ = combine(logits, targets, focal=1.0, gamma=gamma)
    total.backward()
    assert total.isfinite()
    assert logits.grad.isfinite().all()


def test_combined_is_the_weighted_sum():
    logits, targets = batch()
    weights = {"bce": 0.5, "dice": 2.0, "focal": 3.0, "distance": 4.0}
    total, terms = combine(logits, targets, channels=(1.0, 5.0), **weights)
    assert list(terms) == ["bce", "dice", "focal", "distance"]
    weighted = sum(weights[name] * term for name, term in terms.items())
    assert total.item() == pytest.approx(weighted.item())
    foreground, boundary = bce_loss(logits[:, :2], targets[:, :2]).tolist()
    assert terms["bce"].item() == pytest.approx(foreground + 5 * boundary)
    assert not any(term.requires_grad for term in terms.values())
    total.backward()
    assert logits.grad.abs().sum(dim=(0, 2, 3)).min() > 0


@pytest.mark.parametrize(
    ("changes", "names", "untouched"),
    [
        ({"bce": 0.0}, ["dice", "distance"], []),
        ({"distance": 0.0}, ["bce", "dice"], [2]),
        ({"channels": (0.0, 1.0)}, ["bce", "dice", "distance"], [0]),
        ({"channels": (1.0, 0.0)}, ["bce", "dice", "distance"], [1]),
        ({"channels": (0.0, 0.0)}, ["distance"], [0, 1]),
    ],
)
def test_weight_zero_leaves_out(changes, names, untouched):
    logits, targets = batch()
    total, terms = combine(logits, targets, **changes)
    assert list(terms) == names
    total.backward()
    moved = logits.grad.abs().sum(dim=(0, 2, 3))
    assert [channel for channel in range(3) if moved[channel] == 0] == untouched


def test_a_term_left_out_is_not_computed(monkeypatch):
    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", None)
    combine(*batch(), bce=0.0)


def test_all_weights_zero_is_an_error():
    with pytest.raises(InputError, match="every weight is 0"):
        build_loss(loss_params(bce=0.0, dice=0.0, distance=0.0))
    with pytest.raises(InputError, match="every weight is 0"):
        build_loss(loss_params(channels=(0.0, 0.0), distance=0.0))


def test_bf16_logits_are_computed_in_float32():
    logits, targets = batch()
    rounded = logits.detach().bfloat16()
    total, _ = combine(rounded, targets)
    assert total.dtype == torch.float32
    assert total.item() == combine(rounded.float(), targets)[0].item()


def test_nothing_waits_for_the_device():
    with FakeTensorMode(), torch.device("cuda"):
        logits, targets = torch.randn(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8)
        total, _ = combine(logits, targets, torch.ones(2, 1, 8, 8), focal=1.0)
        assert total.device.type == "cuda"


def test_a_term_that_is_not_named_is_left_out():
    only = LossParams.model_validate(loss_params().model_dump() | {"terms": {"dice": {"weight": 1.0}}})
    assert list(build_loss(only)(*batch(), None)[1]) == ["dice"]


def test_the_order_of_the_names_changes_nothing():
    params = loss_params(focal=0.7)
    backwards = params.model_copy(update={"terms": dict(reversed(params.terms.items()))})
    (total, terms), (again, others) = (build_loss(each)(*batch(), None) for each in (params, backwards))
    assert total.equal(again)
    assert list(terms) == list(others) == list(TERMS)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"hinge": {"weight": 1.0}}, r"loss\.terms\.hinge: no such term; there are bce, dice, focal, distance"),
        ({"focal": {"weight": 1.0}}, r"loss\.terms\.focal\.gamma: missing"),
        ({"focal": {"weight": 0.0, "gamma": -1.0}}, r"loss\.terms\.focal\.gamma: .*got -1"),
        ({"dice": {"weight": 1.0, "gamma": 2.0}}, r"loss\.terms\.dice\.gamma: no such key"),
    ],
)
def test_what_is_unknown_missing_or_out_of_bounds_is_refused(terms, message):
    params = LossParams.model_validate(loss_params().model_dump() | {"terms": terms})
    with pytest.raises(InputError, match=message) as refusal:
        build_loss(params)
    assert "\n" not in str(refusal.value)
