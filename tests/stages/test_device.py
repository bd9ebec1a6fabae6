"""The device paths without a device: on fake CUDA tensors, what leaves the device or waits for it raises."""

from collections.abc import Callable

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pipeline.compose import compose_params
from pipeline.folds.training import make_preparation
from pipeline.params import Recipe
from tests.gpu.fake import NothingCrosses, follow_from_loss, follow_to_loss


def make_recipe(weight_map: bool) -> Recipe:
    params = compose_params(["train=gpu"])
    return params.model_copy(update={"loss": params.loss.model_copy(update={"weight_map": weight_map})}).recipe


@pytest.mark.parametrize("weight_map", [False, True])
def test_nothing_crosses_from_cutting_tiles_to_the_loss(weight_map: bool) -> None:
    total, calls = follow_to_loss(make_recipe(weight_map))
    assert total.device.type == "cuda"
    assert calls > 100


def test_nothing_crosses_from_the_loss_to_the_averaged_weights() -> None:
    assert follow_from_loss(make_recipe(weight_map=False)) > 100


@pytest.mark.parametrize(
    "cross",
    [
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.as_tensor([1.0], device=x.device),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: float(x.sum()),
        lambda x: x.nonzero(),
    ],
)
def test_what_crosses_is_refused(cross: Callable[[torch.Tensor], object]) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        x = torch.zeros(3)
        with NothingCrosses(), pytest.raises(AssertionError, match="crosses"):
            cross(x)


def test_no_pixel_has_weight_zero_in_the_weighted_loss() -> None:
    recipe = make_recipe(weight_map=True)
    tile_px, crop_px = recipe.train.tile_px, recipe.train.crop_px
    label_maps = torch.zeros(1, tile_px, tile_px, dtype=torch.int32)
    label_maps[:, 100:120, 100:120] = 1
    label_maps[:, 100:120, 122:140] = 2
    images = torch.zeros(1, 3, tile_px, tile_px, dtype=torch.uint8)
    _, _, weights = make_preparation(recipe, margin_px=0)(images, label_maps, crop_px, torch.Generator().manual_seed(0))
    assert weights is not None
    assert weights.shape == (1, 1, crop_px, crop_px)
    assert weights.min() >= 1
    assert weights.max() > 2
