"""Batch norms and activations fused into convolutions: the same function with fewer layers."""

import copy

import pytest
import torch
from torch import nn

from pipeline.params import NetworkParams
from pipeline.unet.fusing import (
    ConvolutionWithActivation,
    _can_fuse,
    fuse_activations,
    fuse_batch_norms,
    fuse_layers,
)
from pipeline.unet.model import build_model

# As on a Mac.
needs_onednn = pytest.mark.skipif(not _can_fuse(torch.float32), reason="torch has no oneDNN here")


def smp(encoder):
    values = {"weights": None, "weights_file": None, "decoder_channels": (32, 24, 16, 8, 8), "upsampling": "nearest"}
    return NetworkParams(name="smp", encoder=encoder, output_stride=1, **values)


VANILLA = NetworkParams(name="vanilla", depth=2, width=4, padding="valid", upsampling="bilinear", dropout=0.1)


def count_norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def settle(model):
    """Give the batch norms statistics and weights that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("params", [smp("tu-tf_efficientnet_lite0"), smp("resnet18"), VANILLA], ids=lambda p: p.name)
def test_the_fused_network_is_the_same_function(params):
    model = settle(build_model(params))
    weights = copy.deepcopy(model.state_dict())
    fused = fuse_batch_norms(model, torch.rand(1, 3, *[model.lengths.input_for(32)] * 2))
    assert count_norms(model) > 5
    assert count_norms(fused) == 0
    x = torch.rand(2, 3, model.lengths.input_for(64), model.lengths.input_for(96))
    with torch.no_grad():
        wanted = model.eval()(x)
        torch.testing.assert_close(fused(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    # The network that was given is as it was.
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


@needs_onednn
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("params", [smp("tu-tf_efficientnet_lite0"), smp("resnet18"), VANILLA], ids=lambda p: p.name)
def test_with_activations_too(params, layout):
    model = settle(build_model(params)).eval().to(memory_format=layout)
    fused = fuse_layers(model, torch.rand(1, 3, *[model.lengths.input_for(32)] * 2))
    assert count_norms(fused) == 0
    activations = [module for module in fused.modules() if type(module) in (nn.ReLU, nn.ReLU6)]
    fast = [module for module in fused.modules() if isinstance(module, ConvolutionWithActivation)]
    assert len(fast) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    inside = [module for module in fast if not isinstance(module.activation, nn.Identity)]
    assert len(inside) >= 6
    # What is left stands behind a residual block's sum.
    assert len(activations) - len(inside) == (8 if params == smp("resnet18") else 0)
    x = torch.rand(2, 3, model.lengths.input_for(64), model.lengths.input_for(96)).to(memory_format=layout)
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(fused(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    # Gradients are as ever.
    x.requires_grad_()
    fused(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_where_onednn_cannot_nothing_is_fused(monkeypatch):
    monkeypatch.setattr("pipeline.unet.fusing._can_fuse", lambda _: False)
    layers = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
    assert type(fuse_activations(layers, torch.rand(1, 3, 9, 9))[0]) is nn.Conv2d


def test_a_type_that_onednn_has_not_is_computed_as_ever():
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU())
    fused, x = fuse_activations(layers, torch.rand(1, 4, 9, 9)), torch.randn(1, 4, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), layers(x))
        torch.testing.assert_close(copy.deepcopy(fused).double()(x.double()), layers.double()(x.double()))


@needs_onednn
def test_only_what_onednn_knows_is_fused():
    layers = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, padding_mode="reflect", padding=1), nn.ReLU()),
        *(nn.Conv2d(3, 3, 3, padding="same"), nn.ReLU()),
        *(nn.Conv2d(3, 3, 3), nn.LeakyReLU(), nn.ReLU()),
        *(nn.Conv2d(3, 3, 3, stride=2, dilation=2, bias=False), nn.ReLU6()),
    )
    fused = fuse_activations(layers, torch.rand(1, 3, 20, 20))
    kinds = [nn.Conv2d, nn.ReLU] * 2 + [ConvolutionWithActivation, nn.LeakyReLU, nn.ReLU]
    assert [type(layer) for layer in fused] == [*kinds, ConvolutionWithActivation, nn.Identity]
    assert type(fused[4].activation) is nn.Identity
    x = torch.randn(2, 3, 21, 24) * 9
    with torch.no_grad():
        torch.testing.assert_close(fused(x), layers(x))


def test_in_bf16_the_fused_network_is_as_near_to_float32_as_the_plain_one():
    model = settle(build_model(smp("tu-tf_efficientnet_lite0"))).eval()
    fused = fuse_layers(model, torch.rand(1, 3, 64, 64))
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        wanted = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            errors = [(network(x).float() - wanted).abs().mean() for network in (fused, model)]
    assert errors[0] < 1.5 * errors[1]


class _Reused(nn.Module):
    """A batch norm that takes two convolutions' outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.first(x)) + self.norm(self.second(x))


class _Shared(nn.Module):
    """A convolution whose output goes to a batch norm, and past it too: it must not be fused."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.convolution(x)
        return y + self.norm(y)


class _ActivatedToo(nn.Module):
    """A convolution whose output goes to an activation, and past it too: it must not be fused."""

    def __init__(self):
        super().__init__()
        self.convolution, self.activation = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x):
        y = self.convolution(x)
        return y + self.activation(y)


def test_an_activation_that_is_passed_by_stays_as_it_is():
    model = _ActivatedToo().eval()
    kept = fuse_layers(model, torch.rand(1, 3, 8, 8))
    assert type(kept.convolution) is nn.Conv2d
    x = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(kept(x), model(x))


@pytest.mark.parametrize("network", [_Shared, _Reused])
def test_a_network_that_cannot_be_fused_stays_as_it_is(network):
    model = settle(network())
    kept = fuse_batch_norms(model, torch.rand(1, 3, 8, 8))
    assert count_norms(kept) == 1
    x = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(kept(x), model.eval()(x))
