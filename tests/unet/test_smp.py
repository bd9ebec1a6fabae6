"""Encoders of timm and SMP: one that takes any size trains, another is refused before the first step, in one line."""

import time

import pytest
import torch

from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.params import NetworkParams
from pipeline.provenance import ROOT
from pipeline.unet.describe import describe_network
from pipeline.unet.model import build_model
from pipeline.unet.smp import SmpUNet

LITE0 = "tu-tf_efficientnet_lite0"


def build(encoder, depth=5):
    values = {"weights": None, "weights_file": None, "upsampling": "nearest", "output_stride": 1}
    return build_model(
        NetworkParams(name="smp", encoder=encoder, decoder_channels=(16, 16, 16, 8, 8)[:depth], **values)
    )


@pytest.mark.parametrize(
    "encoder",
    [
        *("resnet18", "densenet121", "dpn68", "mobilenet_v2", "mit_b0"),
        *("tu-convnext_atto", "tu-efficientnet_b0", "tu-mobilenetv3_small_050", "tu-pvt_v2_b0", "tu-mambaout_femto"),
    ],
)
def test_an_encoder_of_any_size_is_taken_and_described(encoder):
    model = build(encoder)
    assert model(torch.zeros(2, 3, 96, 64)).shape == (2, 3, 96, 64)
    for tile_px in (32, 256):
        assert describe_network(model, tile_px)[-1].gives == (3, tile_px, tile_px)
    with pytest.raises(InputError, match="nearest is 96"):
        describe_network(model, 100)


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ("tu-swin_tiny_patch4_window7_224", r"Input height \(32\) doesn't match model \(224\)"),
        ("tu-swinv2_cr_tiny_224", r"Input image height \(32\) doesn't match model \(224\)"),
        ("tu-maxvit_pico_rw_256", r"must be divisible by window \(8\)"),
        ("tu-coatnet_nano_rw_224", "must match the size"),
        ("tu-mvitv2_tiny", "out of bounds"),  # takes what is not above 224
        ("tu-halonet26t", "AssertionError"),  # says nothing
        ("tu-legacy_xception", r"maps of .*\(13, 525\).* not .*\(16, 528\)"),  # not half of the image
        ("tu-nest_tiny", "list index out of range"),
        ("tu-vit_tiny_patch16_224", "Unsupported model downsampling pattern"),
        ("tu-eva02_tiny_patch14_224", "Unsupported model downsampling pattern"),
        ("tu-", r"Unknown model \(\)"),
    ],
)
def test_another_is_refused_in_one_line_that_names_some_that_fit(encoder, reason):
    expected = rf"^unet\.encoder: {encoder} with 5 decoder_channels makes no U-Net.*\(.*{reason}.*\); .*resnet34"
    with pytest.raises(InputError, match=expected) as refusal:
        build(encoder)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    ("encoder", "depth"), [*((name, depth) for name in ("resnet18", LITE0) for depth in (1, 3)), ("mit_b0", 2)]
)
def test_a_network_of_fewer_halvings_is_taken(encoder, depth):
    model = build(encoder, depth)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)


def test_a_network_whose_deepest_map_is_empty_is_refused():
    with pytest.raises(InputError, match=r"mit_b0 with 1 decoder_channels makes no U-Net .*resnet34"):
        build("mit_b0", 1)


@pytest.mark.parametrize("encoder", [LITE0, "resnet18", "tu-focalnet_tiny_lrf"])
def test_trying_an_encoder_changes_no_weight_statistic_mode_or_random_number(encoder, monkeypatch):
    def draw():
        torch.manual_seed(3)
        model = build(encoder)
        assert all(module.training for module in model.modules())
        return model.state_dict() | {"next": torch.rand(3)}

    tried = draw()
    monkeypatch.setattr(SmpUNet, "_try", lambda *arguments: None)
    untried = draw()
    assert tried.keys() == untried.keys()
    assert all(torch.equal(value, untried[name]) for name, value in tried.items())


def test_trying_the_default_encoder_takes_a_moment():
    model = build(LITE0).net
    begin = time.process_time()
    model._try(3, 5)
    assert time.process_time() - begin < 0.5


def test_describe_names_an_encoder_of_one_size(tmp_path, monkeypatch):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace(LITE0, "tu-swin_tiny_patch4_window7_224"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: unet\.encoder: tu-swin_tiny_patch4_window7_224 with 4"):
        main(["describe"])
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"^error: .* 100 px .*nearest is 96"):
        main(["describe", "--tile-px", "100"])
