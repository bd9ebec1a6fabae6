"""The U-Net of the paper: its size, its arithmetic of lengths, its initialisation."""

import math

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.unet.vanilla import VanillaParams, VanillaUNet, length_rule


def vanilla(**changes):
    values = {"depth": 5, "width": 64, "padding": "same", "upsampling": "transposed", "dropout": 0.0}
    return VanillaParams(**(values | changes))


def test_the_paper_s_has_31_million_parameters():
    with torch.device("meta"):
        net = VanillaUNet(1, 2, vanilla())
    assert sum(weight.numel() for weight in net.parameters()) == pytest.approx(31.0e6, rel=0.002)
    assert [block[0].out_channels for block in net.contracting] == [64, 128, 256, 512, 1024]
    assert [block[0].in_channels for block in net.expanding] == [1024, 512, 256, 128]


@pytest.mark.parametrize(("input_px", "output_px"), [(572, 388), (252, 68), (188, 4)])
def test_valid_padding_has_the_paper_s_sizes(input_px, output_px):
    params = vanilla(padding="valid")
    assert length_rule(params).output_of(input_px) == output_px
    with torch.device("meta"):
        assert VanillaUNet(3, 3, params)(torch.empty(1, 3, input_px, 572)).shape == (1, 3, output_px, 388)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_valid_rule_is_what_the_layers_do(depth):
    """Every length that the rule takes has even pooling inputs and the output named; all others have an odd one."""
    params = vanilla(depth=depth, width=1, padding="valid")
    rule = length_rule(params)
    for length in range(2 * rule.margin_px + 1, 2 * rule.margin_px + 70):
        pooled, even = length, True
        for _ in range(depth - 1):
            pooled -= 4
            even &= pooled % 2 == 0
            pooled //= 2
        for level in range(depth):
            pooled = pooled - 4 if level == 0 else 2 * pooled - 4
        assert even == (length % rule.multiple == rule.remainder)
        if even:
            assert rule.output_of(length) == pooled


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_forward_and_backward(padding, upsampling):
    net = VanillaUNet(3, 2, vanilla(depth=3, width=4, padding=padding, upsampling=upsampling, dropout=0.5))
    output = net(torch.randn(2, 3, 64, 60))
    lost = 40 if padding == "valid" else 0
    assert output.shape == (2, 2, 64 - lost, 60 - lost)
    output.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize(
    ("padding", "size", "nearest"), [("valid", 256, "252, which gives 68"), ("same", 250, "256"), ("valid", 100, "188")]
)
def test_a_length_that_does_not_fit_names_the_nearest(padding, size, nearest):
    net = VanillaUNet(3, 3, vanilla(width=1, padding=padding))
    with pytest.raises(InputError, match=f"{size} px long.*the nearest is {nearest}"):
        net(torch.zeros(1, 3, 572 if padding == "valid" else 256, size))


def test_valid_prediction_is_the_centre_of_the_input():
    """A change of the outermost input pixel that the output's centre cannot see changes nothing there."""
    torch.manual_seed(0)
    net = VanillaUNet(1, 1, vanilla(depth=2, width=4, padding="valid")).eval()
    x = torch.randn(1, 1, 24, 24, requires_grad=True)
    net(x)[0, 0, 0, 0].backward()
    seen = x.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert net.lengths.margin_px == 8
    # The output's first row is the input's row 8; its receptive field lies around it and starts at the border.
    assert seen.min() == 0
    assert seen.max() <= 17


def test_dropout_is_only_at_the_bottom_and_only_in_training():
    net = VanillaUNet(3, 3, vanilla(depth=3, width=4, dropout=0.5))
    x = torch.randn(1, 3, 16, 16)
    assert not net(x).equal(net(x))
    net.eval()
    assert net(x).equal(net(x))
    assert sum(isinstance(module, nn.Dropout) for module in net.modules()) == 1


def test_he_initialisation_keeps_the_variance():
    torch.manual_seed(0)
    net = VanillaUNet(3, 3, vanilla(width=32, depth=3))
    conv = net.contracting[1][3]
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * conv.in_channels)), rel=0.03)
    # Each output of a transposed 2x2 convolution with stride 2 sees one input pixel: its variance is 2 / C * C = 2.
    upsample = net.upsampling[0]
    assert upsample(torch.randn(4, upsample.in_channels, 16, 16)).var().item() == pytest.approx(2, rel=0.1)


def test_the_encoder_s_maps_are_those_of_the_resolutions():
    net = VanillaUNet(3, 3, vanilla(depth=3, width=4)).eval()
    x = torch.randn(1, 3, 16, 20)
    assert [tuple(level.shape) for level in net.encode(x)] == [(1, 4, 16, 20), (1, 8, 8, 10), (1, 16, 4, 5)]
    # The last one is what the last block makes.
    with torch.no_grad():
        net.contracting[2][3].weight.zero_()
    assert not net.encode(x)[-1].any()
