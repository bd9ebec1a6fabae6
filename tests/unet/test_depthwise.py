"""Depthwise convolutions on a CPU: the slow ones compute in float32 under bf16, all else is as it was."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from pipeline.params import NetworkParams
from pipeline.unet.depthwise import run_slow_depthwise_in_float32
from pipeline.unet.model import build_model

SLOW = {"stride": {"stride": 2}, "kernel": {"kernel_size": 5}, "both": {"kernel_size": 7, "stride": 2}}
FAST = {"plain": {}, "grouped": {"groups": 4, "kernel_size": 5}, "dense": {"groups": 1, "stride": 2}}


def make(options, kind=nn.Conv2d):
    torch.manual_seed(0)
    return kind(**({"in_channels": 8, "out_channels": 8, "kernel_size": 3, "groups": 8} | options))


def mark(convolution):
    model = nn.Sequential(convolution)
    run_slow_depthwise_in_float32(model)
    return model


def in_bf16(model, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(x)


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize("name", SLOW)
def test_a_slow_one_is_the_float32_convolution_rounded(name, kind):
    x = torch.randn(2, 8, 19, 23).bfloat16()
    plain = make(SLOW[name], kind)
    output = in_bf16(mark(make(SLOW[name], kind)), x)
    assert output.dtype == torch.bfloat16
    assert output.equal(plain(x.float()).bfloat16())
    # Weights are not rounded, as bf16 does; that is what tells the two apart.
    assert not output.equal(in_bf16(plain, x))


@pytest.mark.parametrize("name", FAST)
def test_a_fast_one_computes_as_before(name):
    x, convolution = torch.randn(2, 8, 19, 23), make(FAST[name])
    marked = mark(make(FAST[name]))
    assert type(marked[0]) is nn.Conv2d
    assert in_bf16(marked, x).equal(in_bf16(convolution, x))


def test_float32_inputs_stay_float32():
    x, convolution = torch.randn(2, 8, 19, 23), make(SLOW["both"])
    output = mark(make(SLOW["both"]))(x)
    assert output.dtype == torch.float32
    assert output.equal(convolution(x))


@pytest.mark.parametrize("options", [*SLOW.values(), *FAST.values()])
def test_weights_keep_names_and_values_and_learn(options):
    plain, marked = nn.Sequential(make(options)), mark(make(options))
    assert list(marked.state_dict()) == list(plain.state_dict())
    assert all(value.equal(plain.state_dict()[name]) for name, value in marked.state_dict().items())
    in_bf16(marked, torch.randn(1, 8, 15, 15)).float().sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in marked.parameters())


def test_of_the_default_encoder_strided_and_5x5_layers_are_changed():
    unet = {
        "encoder": "tu-tf_efficientnet_lite0",
        "weights": None,
        "weights_file": None,
        "upsampling": "nearest",
        "output_stride": 1,
    }
    model = build_model(NetworkParams(name="smp", decoder_channels=(16, 16, 16, 8, 8), **unet))
    depthwise = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    changed = [layer for layer in depthwise if type(layer).__name__.startswith("Float32")]
    assert len(depthwise) == 16
    assert changed == [layer for layer in depthwise if layer.kernel_size == (5, 5) or layer.stride == (2, 2)]
    # Of the 16 inverted bottlenecks 9 have 5 x 5 kernels, and of the others 2 halve the image.
    assert len(changed) == 9 + 2
