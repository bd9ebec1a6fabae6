"""The bricks: shapes, channel counts, crops, and the lengths a network takes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import InputError
from pipeline.unet.blocks import ConvBlock, LengthRule, build_upsampling, center_crop, concatenate_skip


@pytest.mark.parametrize(("padding", "size"), [("same", 10), ("valid", 6)])
def test_conv_block_is_the_course_s(padding, size):
    block = ConvBlock(3, 4, padding)
    assert [type(layer) for layer in block] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2
    assert block[0].bias is None
    assert block[3].bias is None
    output = block(torch.randn(2, 3, 10, 10))
    assert output.shape == (2, 4, size, size)
    assert output.min() >= 0


@pytest.mark.parametrize("kind", ["transposed", "nearest", "bilinear", "bicubic"])
def test_upsampling_doubles_size_and_changes_channels(kind):
    assert build_upsampling(kind, 6, 3)(torch.randn(2, 6, 5, 4)).shape == (2, 3, 10, 8)


def test_transposed_is_a_2x2_kernel_with_stride_2():
    layer = build_upsampling("transposed", 6, 3)
    assert isinstance(layer, nn.ConvTranspose2d)
    assert (layer.kernel_size, layer.stride) == ((2, 2), (2, 2))


def test_nearest_repeats_each_pixel():
    upsample, conv = build_upsampling("nearest", 1, 1)
    assert conv.kernel_size == (1, 1)
    assert upsample(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]


def test_bilinear_takes_pixels_for_areas():
    # Centres of the new pixels lie at -0.25, 0.25, 0.75, 1.25 of the old: 0, 1/4, 3/4 and 1 on the way from 0 to 4.
    upsample, _ = build_upsampling("bilinear", 1, 1)
    assert upsample(torch.tensor([[[[0.0, 4.0]]]]))[0, 0, 0].tolist() == [0, 1, 3, 4]


def test_crop_takes_the_centre():
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert center_crop(x, (1, 3)).tolist() == [[[[11, 12, 13]]]]
    assert center_crop(x, (2, 4)).tolist() == [[[[5, 6, 7, 8], [10, 11, 12, 13]]]]  # of an odd rest less is before it
    assert center_crop(x, (5, 5)).equal(x)


def test_skip_comes_first_and_is_cropped():
    joined = concatenate_skip(torch.ones(1, 2, 6, 6), torch.zeros(1, 3, 4, 2))
    assert joined.shape == (1, 5, 4, 2)
    assert joined.mean(dim=(0, 2, 3)).tolist() == [1, 1, 0, 0, 0]


@given(output=st.integers(1, 2000), power=st.integers(0, 6), remainder=st.integers(0, 63), margin=st.integers(0, 200))
def test_length_rule_gives_the_smallest_input_that_suffices(output, power, remainder, margin):
    rule = LengthRule(2**power, remainder % 2**power, margin)
    length = rule.input_for(output)
    assert output <= rule.output_of(length) < output + rule.multiple


def test_length_rule_names_the_nearest():
    with pytest.raises(InputError, match=r"250 px long.* multiple of 32; the nearest is 256"):
        LengthRule(32).output_of(250)
    with pytest.raises(InputError, match="nearest is 32"):
        LengthRule(32).output_of(3)
