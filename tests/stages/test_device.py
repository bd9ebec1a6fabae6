"""The device paths without a device: on fake CUDA tensors, what leaves the device or waits for it raises."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pipeline.compose import compose_params
from pipeline.folds.training import make_preparation
from pipeline.images.resident import cut_windows
from pipeline.params import Recipe
from pipeline.unet.losses import build_loss
from pipeline.unet.model import build_model


def make_recipe(weight_map: bool) -> Recipe:
    params = compose_params()
    return params.model_copy(update={"loss": params.loss.model_copy(update={"weight_map": weight_map})}).recipe


@pytest.mark.parametrize("weight_map", [False, True])
def test_crop_augmentation_targets_network_and_loss_stay_on_the_device(
    weight_map: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(weight_map)

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor left the device")

    with FakeTensorMode(), torch.device("cuda"):
        model = build_model(recipe.unet, pretrained=False)
        pixels, ids = torch.zeros(2 * 300 * 400, 3, dtype=torch.uint8), torch.zeros(2 * 300 * 400, dtype=torch.int32)
        windows = torch.tensor([[0, 300, 400, 10, 20], [300 * 400, 300, 400, 0, 0]])
        monkeypatch.setattr(torch.Tensor, "cpu", refuse)
        tiles, label_maps = cut_windows(pixels, ids, windows, recipe.train.tile_px)
        prepare = make_preparation(recipe, margin_px=0)
        images, crop_px = tiles.permute(0, 3, 1, 2), recipe.train.crop_px
        inputs, targets, weights = prepare(images, label_maps, crop_px, None)  # type: ignore[arg-type]
        assert (weights is not None) == weight_map
        total, terms = build_loss(recipe.loss)(model(inputs), targets, weights)
        for tensor in (tiles, label_maps, inputs, targets, total, *terms.values()):
            assert tensor.device.type == "cuda"


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
