"""Networks from parameters: shapes, sizes, normalisation, errors."""

import re
import socket

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pipeline.errors import InputError
from pipeline.params import NetworkParams
from pipeline.unet.model import NETWORKS, build_model


def smp_params(**changes):
    values = {"encoder": "tu-tf_efficientnet_lite0", "weights": None, "weights_file": None, "upsampling": "nearest"}
    values |= {"decoder_channels": (32, 16, 16, 8, 8), "output_stride": 1}
    return NetworkParams(name="smp", **(values | changes))


def vanilla(**changes):
    values = {"depth": 3, "width": 4, "padding": "same", "upsampling": "transposed", "dropout": 0.0}
    return NetworkParams(name="vanilla", **(values | changes))


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    "params",
    [
        smp_params(weights="pypi"),
        smp_params(upsampling="bilinear"),
        smp_params(upsampling="bicubic"),
        smp_params(encoder="resnet18"),
        smp_params(encoder="tu-resnet18", decoder_channels=(16, 16, 8)),
        smp_params(encoder="tu-convnext_atto", decoder_channels=(32, 16, 16, 8, 8)),
        smp_params(decoder_channels=(32, 16, 16, 8), output_stride=2),
        smp_params(encoder="resnet18", decoder_channels=(16, 8), output_stride=4),
        vanilla(),
    ],
    ids=lambda params: f"{params.name}-{getattr(params, 'encoder', '')}-{params.upsampling}",
)
def test_logits_have_the_image_s_size(params):
    model = build_model(params)
    height = model.lengths.input_for(60)
    assert height % model.lengths.multiple == 0
    assert model.margin_px == 0
    logits = model(torch.rand(2, 3, height, 2 * model.lengths.multiple))
    assert logits.shape == (2, 3, height, 2 * model.lengths.multiple)
    assert logits.isfinite().all()


def test_multiple_is_two_to_the_depth():
    assert build_model(smp_params()).lengths.multiple == 32
    assert build_model(smp_params(decoder_channels=(16, 8, 8))).lengths.multiple == 8
    assert build_model(smp_params(decoder_channels=(16, 8, 8), output_stride=4)).lengths.multiple == 32
    assert build_model(vanilla()).lengths.multiple == 4


def test_a_head_of_stride_2_puts_four_neighbours_side_by_side_in_its_channels():
    model = build_model(smp_params(decoder_channels=(16, 8, 8, 8), output_stride=2)).eval()
    seen = []
    model.net.segmentation_head[0].register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    logits = model(torch.rand(1, 3, 32, 64))
    (coarse,) = seen
    assert coarse.shape == (1, 12, 16, 32)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        torch.testing.assert_close(logits[:, :, row::2, column::2], coarse[:, 2 * row + column :: 4])


def test_valid_padding_gives_the_centre():
    model = build_model(vanilla(depth=5, padding="valid"))
    assert (model.margin_px, model.lengths.multiple) == (92, 16)
    assert model(torch.rand(1, 3, 252, 188)).shape == (1, 3, 68, 4)


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear", "bicubic"])
def test_bf16_channels_last_trains(upsampling):
    model = build_model(smp_params(upsampling=upsampling)).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    logits.float().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize(("encoder", "mean"), [("tu-tf_efficientnet_lite0", 0.5), ("resnet18", 0.485)])
def test_normalisation_is_part_of_the_network(encoder, mean):
    model = build_model(smp_params(encoder=encoder)).eval()
    assert model.mean.flatten()[0].item() == pytest.approx(mean)
    assert {"mean", "std"} < set(model.state_dict())
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert model(images).equal(model.net((images - model.mean) / model.std))


def test_encoder_weights_say_where_they_are_from():
    assert build_model(smp_params(weights="pypi")).encoder_weights["source"] == "pypi"
    assert build_model(smp_params(weights="pypi"), pretrained=False).encoder_weights["source"] == "none"
    assert build_model(vanilla()).encoder_weights == {"source": "none", "file": "", "sha256": ""}


def test_pretrained_false_reads_no_weights():
    build_model(smp_params(weights="file", weights_file="nowhere.safetensors"), pretrained=False)


def test_what_a_network_sees_of_an_image_it_sees_normalised():
    for params in (smp_params(), vanilla()):
        model = build_model(params).eval()
        images = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            maps = model.encode(images)
            assert maps[-1].equal(model.net.encode((images - model.mean) / model.std)[-1])
            assert maps[-1].shape[-1] < maps[-2].shape[-1] < 64


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_says_what_it_is_and_which_modules_are_stages(name):
    model = build_model({"smp": smp_params, "vanilla": vanilla}[name]())
    assert model.title
    names = [module for module, _ in model.net.named_modules()]
    for pattern, stage in model.net.stages:
        assert any(re.match(pattern, module) for module in names), stage


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (NetworkParams(name="unet3"), "unet.name: no network 'unet3'; choose one of smp, vanilla"),
        (vanilla(depht=4), "unet.depht: no such key"),
        (NetworkParams(name="vanilla", depth=3), "unet.width: Field required"),
        (vanilla(depth=9), "unet.depth: .*got 9"),
        (smp_params(weights="imagenet"), "unet.weights: .*got 'imagenet'"),
        (smp_params(width=4), "unet.width: no such key"),
    ],
)
def test_what_is_unknown_missing_or_out_of_bounds_is_refused(params, message):
    with pytest.raises(InputError, match=message) as refusal:
        build_model(params)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("encoder", ["tu-nonsense", "nonsense", "tu-vit_tiny_patch16_224"])
def test_an_encoder_that_cannot_be_built_is_named(encoder):
    with pytest.raises(InputError, match=f"unet.encoder: {encoder}"):
        build_model(smp_params(encoder=encoder))


def test_too_many_decoder_channels_are_named():
    with pytest.raises(InputError, match="with 6 decoder_channels"):
        build_model(smp_params(decoder_channels=(8,) * 6))


@pytest.mark.parametrize("params", [smp_params(), vanilla(), vanilla(padding="valid")], ids=["smp", "same", "valid"])
def test_forward_stays_on_the_device(params):
    with FakeTensorMode(allow_non_fake_inputs=False), torch.device("cuda"):
        logits = build_model(params)(torch.rand(2, 3, 64, 64))
        assert logits.device.type == "cuda"
