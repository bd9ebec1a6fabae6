"""The stage `train`: which batches it trains on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.images.store import Pack, PackWriter
from pipeline.params import Params, load_params
from pipeline.stages.train import load_batches, make_preparation, make_trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    with PackWriter(tmp_path / "images.npz") as pack:
        for name in "ab":
            pack.add(f"{name}.image", rng.integers(0, 256, (90, 100, 3), dtype=np.uint8))
            pack.add(f"{name}.label_map", rng.integers(0, 9, (90, 100)).astype(np.uint16))
    table = pd.DataFrame({"image_id": list("ab"), "image_type": "fluorescence", "median_area_px": 200.0})
    return Pack(tmp_path / "images.npz"), table


def make_params(start_crop_px: int, backend: str = "device") -> Params:
    content = load_params(ROOT / "params.yaml").model_dump()
    content["unet"] = {
        "name": "vanilla",
        "depth": 3,
        "width": 2,
        "padding": "same",
        "upsampling": "nearest",
        "dropout": 0,
    }
    content["augment"]["backend"] = backend
    content["train"] |= {"device": "cpu", "epochs": 1, "steps_per_epoch": 5, "batch": 2, "tile_px": 80, "crop_px": 64}
    content["train"]["start_crop_px"] = start_crop_px
    return Params.model_validate(content)


def read_batches(split, params, step=0):
    return list(load_batches(*split, make_trainer(0, params), params, step))


@pytest.mark.parametrize("backend", ["device", "none", "albumentations"])
def test_the_first_half_of_the_steps_sees_small_crops(split, backend):
    params = make_params(32, backend)
    batches = read_batches(split, params)
    tiles = [32, 32, 64, 64, 64] if backend == "albumentations" else [40, 40, 80, 80, 80]
    assert [images.shape[1] for images, _ in batches] == tiles
    prepare, generator = make_preparation(params), torch.Generator().manual_seed(0)
    inputs = [prepare(images.permute(0, 3, 1, 2), ids, generator)[0] for images, ids in batches]
    assert [one.shape[-1] for one in inputs] == [32, 32, 64, 64, 64]


@pytest.mark.parametrize("step", range(1, 6))
def test_batches_go_on_where_a_training_was_stopped(split, step):
    params = make_params(32)
    for (images, ids), (later_images, later_ids) in zip(
        read_batches(split, params)[step:], read_batches(split, params, step), strict=True
    ):
        assert torch.equal(images, later_images)
        assert torch.equal(ids, later_ids)


def test_one_size_is_what_it_was_without_a_first_half(split):
    """The draws of a sample depend on its number alone."""
    whole = read_batches(split, make_params(64))
    later = read_batches(split, make_params(32))
    assert len(whole) == len(later) == 5
    assert torch.equal(whole[4][0], later[4][0])


def test_what_a_valid_network_sees_has_the_targets_and_weights_of_the_whole_crop(split):
    content = make_params(64).model_dump()
    content["loss"] |= {"weight_map": True, "weight_map_sigma_px": 2.0}
    params = Params.model_validate(content)
    images, ids = read_batches(split, params)[-1]
    margin_px = 20  # more than anything reaches: 8 px of distance, 6 of the weights
    results = [
        make_preparation(params, margin)(images.permute(0, 3, 1, 2), ids, torch.Generator().manual_seed(0))
        for margin in (0, margin_px)
    ]
    assert torch.equal(results[0][0], results[1][0])
    for whole, part in zip(results[0][1:], results[1][1:], strict=True):
        assert part.shape[-1] == 64 - 2 * (margin_px - 8)
        inner = whole[..., margin_px:-margin_px, margin_px:-margin_px]
        assert torch.equal(inner, part[..., 8:-8, 8:-8])
