"""The loss, term by term: logits and targets go in, one number to minimise and its parts come out.

Logits and targets are (B, C, H, W); the channels of the whole are foreground, boundary, distance. Everything is
computed in float32, and nothing waits for the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import InputError
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


def soft_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
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


def focal_loss(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
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


def distance_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute error per channel (C,) of the predicted distance, background included.

    Args:
        logits: (B, C, H, W); their sigmoid is the prediction.
        targets: (B, C, H, W) in [0, 1]; the distance to the nucleus's border, 0 on the background.

    Source: Schmidt et al. 2018 (arXiv:1806.03535), equation 2, where distances are learnt by mean absolute error too.
    """
    return (logits.sigmoid() - targets).abs().mean(dim=(0, 2, 3))


def combined_loss(
    logits: Tensor, targets: Tensor, params: LossParams, pixel_weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the terms, and each term, detached and before its weight.

    BCE, Dice and focal loss are sums over foreground and boundary, weighted by `params.channels`; a term or a channel
    of weight 0 is left out.

    Args:
        logits: (B, 3, H, W), of any precision.
        targets: (B, 3, H, W) in [0, 1], already the centre that the network predicts.
        params: the section `loss`.
        pixel_weights: (B, 1, H, W) for the cross-entropy, or None.

    Raises:
        InputError: every weight is 0.
    """
    # In one memory layout: between two, arithmetic is slower on a CPU (`make bench only=operators`).
    logits, targets = logits.float().contiguous(), targets.float().contiguous()
    foreground, boundary = (weight > 0 for weight in params.channels)
    # A slice: a list of channels would have to be sent to the device at every step.
    chosen = slice(0 if foreground else 1, 2 if boundary else 1)
    pair, weights = (logits[:, chosen], targets[:, chosen]), list(params.channels)[chosen]
    terms: dict[str, Tensor] = {}
    if weights and params.bce > 0:
        terms["bce"] = _sum_channels(bce_loss(*pair, pixel_weights), weights)
    if weights and params.dice > 0:
        terms["dice"] = _sum_channels(soft_dice_loss(*pair), weights)
    if weights and params.focal > 0:
        terms["focal"] = _sum_channels(focal_loss(*pair, params.focal_gamma), weights)
    if params.distance > 0:
        terms["distance"] = distance_loss(logits[:, 2:], targets[:, 2:]).sum()
    if not terms:
        raise InputError("loss: every weight is 0; give at least one term and one channel a weight")
    total = torch.stack([getattr(params, name) * term for name, term in terms.items()]).sum()
    return total, {name: term.detach() for name, term in terms.items()}


def _sum_channels(loss: Tensor, weights: list[float]) -> Tensor:
    return torch.stack([weight * part for weight, part in zip(weights, loss.unbind(), strict=True)]).sum()
