"""The loss, term by term: logits and targets go in, one number to minimise and its parts come out.

Logits and targets are (B, C, H, W); the channels of the whole are foreground, boundary, distance. Everything is
computed in float32, and nothing waits for the device. A new term is a function and an entry of TERMS. It is given the
channels that it is about, (B, C, H, W), and weights of pixels, (B, 1, H, W) or None, and returns a number per channel,
(C,); its keyword-only parameters are the keys that `loss.terms` has for it beside `weight`, with their bounds.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import InputError
from pipeline.options import NotNegative, bind_options
from pipeline.params import LossParams

# Added to both sides of Dice's fraction: one pixel, so that a channel without a single target pixel has a gradient
# and, predicted empty, a loss of 0.
_DICE_SMOOTHING_PX = 1.0


def bce_loss(logits: Tensor, targets: Tensor, pixel_weights: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy per channel (C,), averaged over the batch and its pixels.

    Args:
        logits: (B, C, H, W).
        targets: (B, C, H, W) in [0, 1].
        pixel_weights: (B, 1, H, W), not negative; the U-Net paper's weight map.

    Source: Ronneberger et al. 2015 (arXiv:1505.04597), equation 1, with a sigmoid per channel in place of a softmax.
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if pixel_weights is not None:
        loss = loss * pixel_weights
    return loss.mean(dim=(0, 2, 3))


def soft_dice_loss(logits: Tensor, targets: Tensor, _pixel_weights: Tensor | None = None) -> Tensor:
    """Return 1 - Dice per channel (C,), with probabilities for set membership, over the whole batch at once.

    1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1). Over the batch rather than per image, an image without nuclei
    does not dominate.

    Args:
        logits: (B, C, H, W).
        targets: (B, C, H, W) in [0, 1].

    Source: Milletari et al. 2016 (arXiv:1606.04797), section 3; sums in place of squares: Drozdzal et al. 2016
        (arXiv:1608.04117), equation 1.
    """
    probabilities = logits.sigmoid()
    common = (probabilities * targets).sum(dim=(0, 2, 3))
    both = (probabilities + targets).sum(dim=(0, 2, 3))
    return 1 - (2 * common + _DICE_SMOOTHING_PX) / (both + _DICE_SMOOTHING_PX)


def focal_loss(logits: Tensor, targets: Tensor, _pixel_weights: Tensor | None = None, *, gamma: NotNegative) -> Tensor:
    """Return the focal loss per channel (C,): cross-entropy times (1 - p_t)^gamma, p_t the probability of the truth.

    A gamma of 0 is cross-entropy. Both factors are functions of the margin m = +-logit, by which they stay finite:
    1 - p_t = sigmoid(-m), -log p_t = softplus(-m). The class weight alpha is left out (alpha = 1).

    Args:
        logits: (B, C, H, W).
        targets: (B, C, H, W), 0 or 1.
        gamma: how much easy pixels are played down; not negative.

    Source: Lin et al. 2017 (arXiv:1708.02002), equation 4.
    """
    margin = logits * (2 * targets - 1)
    modulation = torch.exp(gamma * F.logsigmoid(-margin))
    return (modulation * F.softplus(-margin)).mean(dim=(0, 2, 3))


def distance_loss(logits: Tensor, targets: Tensor, _pixel_weights: Tensor | None = None) -> Tensor:
    """Return the mean absolute error per channel (C,) of the predicted distance, background included.

    Args:
        logits: (B, C, H, W); their sigmoid is the prediction.
        targets: (B, C, H, W) in [0, 1]; the distance to the nucleus's border, 0 on the background.

    Source: Schmidt et al. 2018 (arXiv:1806.03535), equation 2, where distances are learnt by mean absolute error too.
    """
    return (logits.sigmoid() - targets).abs().mean(dim=(0, 2, 3))


On = Literal["foreground and boundary", "distance"]


class Term(NamedTuple):
    """A term of the loss: what computes it, and the channels that it is about; `loss.channels` weighs the first two."""

    compute: Callable[..., Tensor]
    on: On


# In the order in which they are summed.
TERMS = {
    "bce": Term(bce_loss, "foreground and boundary"),
    "dice": Term(soft_dice_loss, "foreground and boundary"),
    "focal": Term(focal_loss, "foreground and boundary"),
    "distance": Term(distance_loss, "distance"),
}

# (logits, targets, weights of pixels or None) -> the weighted sum of the terms, and each, detached and unweighted.
Loss = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]


def build_loss(params: LossParams) -> Loss:
    """Return the loss that the section `loss` describes; a term or a channel of weight 0 is left out.

    The loss takes logits (B, 3, H, W) of any precision, targets (B, 3, H, W) in [0, 1], already the centre that the
    network predicts, and weights of pixels (B, 1, H, W) or None.

    Raises:
        InputError: a term or one of its keys is unknown, missing or out of bounds, or every weight is 0.
    """
    terms = _bind_terms(params)
    foreground, boundary = (weight > 0 for weight in params.channels)
    # A slice: a list of channels would have to be sent to the device at every step.
    chosen = slice(0 if foreground else 1, 2 if boundary else 1)
    channels: dict[On, slice] = {"foreground and boundary": chosen, "distance": slice(2, 3)}
    channel_weights: dict[On, list[float]] = {
        "foreground and boundary": list(params.channels)[chosen],
        "distance": [1.0],
    }
    weights = {name: params.terms[name].weight for name, term in terms.items() if channel_weights[term.on]}
    used = [name for name, weight in weights.items() if weight > 0]
    if not used:
        raise InputError("loss: every weight is 0; give at least one term and one channel a weight")

    def compute(logits: Tensor, targets: Tensor, pixel_weights: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        # In one memory layout: between two, arithmetic is slower on a CPU (`make bench only=operators`).
        logits, targets = logits.float().contiguous(), targets.float().contiguous()
        views = {on: (logits[:, part], targets[:, part]) for on, part in channels.items()}
        values = {}
        for name in used:
            function, on = terms[name]
            values[name] = _sum_channels(function(*views[on], pixel_weights), channel_weights[on])
        total = torch.stack([weights[name] * value for name, value in values.items()]).sum()
        return total, {name: value.detach() for name, value in values.items()}

    return compute


def _bind_terms(params: LossParams) -> dict[str, Term]:
    """Return the terms that `params` name, in the order of TERMS, told what `params` say."""
    if unknown := params.terms.keys() - TERMS.keys():
        raise InputError(f"params.yaml: loss.terms.{min(unknown)}: no such term; there are {', '.join(TERMS)}")
    options = {name: section.model_extra or {} for name, section in params.terms.items()}
    return {
        name: Term(bind_options(term.compute, options[name], f"loss.terms.{name}"), term.on)
        for name, term in TERMS.items()
        if name in options
    }


def _sum_channels(loss: Tensor, weights: list[float]) -> Tensor:
    return torch.stack([weight * part for weight, part in zip(weights, loss.unbind(), strict=True)]).sum()
