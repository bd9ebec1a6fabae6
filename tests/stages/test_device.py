"""The device paths without a device: on fake CUDA tensors, what leaves the device or waits for it raises."""

from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pipeline.images.resident import cut_windows
from pipeline.params import load_params
from pipeline.stages.train import make_preparation
from pipeline.unet.losses import combined_loss
from pipeline.unet.model import build_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("weight_map", [False, True])
def test_crop_augmentation_targets_network_and_loss_stay_on_the_device(
    weight_map: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(ROOT / "params.yaml")
    loss = params.loss.model_copy(update={"weight_map": weight_map})
    params = params.model_copy(update={"loss": loss})

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor left the device")

    with FakeTensorMode(), torch.device("cuda"):
        model = build_model(params.unet, pretrained=False)
        pixels, ids = torch.zeros(2 * 300 * 400, 3, dtype=torch.uint8), torch.zeros(2 * 300 * 400, dtype=torch.int32)
        windows = torch.tensor([[0, 300, 400, 10, 20], [300 * 400, 300, 400, 0, 0]])
        monkeypatch.setattr(torch.Tensor, "cpu", refuse)
        tiles, label_maps = cut_windows(pixels, ids, windows, params.train.tile_px)
        prepare = make_preparation(params)
        inputs, targets, weights = prepare(tiles.permute(0, 3, 1, 2), label_maps, None)  # type: ignore[arg-type]
        assert (weights is not None) == weight_map
        total, terms = combined_loss(model(inputs), targets, params.loss, weights)
        for tensor in (tiles, label_maps, inputs, targets, total, *terms.values()):
            assert tensor.device.type == "cuda"


def test_no_pixel_has_weight_zero_in_the_weighted_loss() -> None:
    params = load_params(ROOT / "params.yaml")
    params = params.model_copy(update={"loss": params.loss.model_copy(update={"weight_map": True})})
    label_maps = torch.zeros(1, params.train.tile_px, params.train.tile_px, dtype=torch.int32)
    label_maps[:, 100:120, 100:120] = 1
    label_maps[:, 100:120, 122:140] = 2
    images = torch.zeros(1, 3, params.train.tile_px, params.train.tile_px, dtype=torch.uint8)
    _, _, weights = make_preparation(params)(images, label_maps, torch.Generator().manual_seed(0))
    assert weights is not None
    assert weights.shape == (1, 1, params.train.crop_px, params.train.crop_px)
    assert weights.min() >= 1
    assert weights.max() > 2
