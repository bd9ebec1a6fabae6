"""Effects about stained tissue: which images they change, within which bounds, and that nuclei stay where they are."""

import pytest
import torch

from pipeline.images.draw import Draw
from pipeline.images.effects import density, synthetic_stain

LIGHT = torch.tensor([0.8, 0.6, 0.9])


def draw(count: int, seed: int = 0) -> Draw:
    return Draw(count, torch.device("cpu"), torch.Generator().manual_seed(seed))


def light(count: int) -> torch.Tensor:
    return LIGHT[None, :, None, None].expand(count, 3, 8, 8).clone()


def cells(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dark images (B, 3, 64, 64) with two bright discs, and where these are."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    inside = ((rows - 20) ** 2 + (columns - 20) ** 2 < 100) | ((rows - 45) ** 2 + (columns - 40) ** 2 < 64)
    return (0.02 + 0.8 * inside.float()).expand(count, 3, 64, 64).clone(), inside


def test_stained_nuclei_are_darker_than_what_is_around_them() -> None:
    images, inside = cells(200)
    stained = synthetic_stain(draw(200), images.clone(), probability=1.0)
    assert stained.min() >= 0
    assert stained.max() <= 1
    around = stained[..., ~inside].mean(dim=(1, 2))
    assert around.median() > 0.6
    assert ((around - stained[..., inside].mean(dim=(1, 2))) > 0.05).float().mean() > 0.9
    # Colours, not greys, and another for each image.
    assert (stained.amax(dim=1) - stained.amin(dim=1)).mean() > 0.1
    assert stained.mean(dim=(2, 3)).unique(dim=0).shape[0] == 200


def test_a_brighter_pixel_has_more_stain_where_the_background_has_none() -> None:
    """Of a ramp from dark to bright every channel falls, unless what filled the background makes way."""
    ramp = torch.linspace(0, 0.9, 64).expand(100, 3, 64, 64).clone()
    stained = synthetic_stain(draw(100), ramp, probability=1.0).mean(dim=(1, 2))
    assert (stained[:, -1] < stained[:, 0]).float().mean() > 0.9


def test_noise_of_an_image_without_nuclei_is_not_stained_as_nuclei_are() -> None:
    noise = 0.05 * torch.rand(100, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    nuclei = torch.full((100, 3, 64, 64), 0.9)
    empty, full = (synthetic_stain(draw(100), images, probability=1.0) for images in (noise, nuclei / 2))
    assert (empty.mean(dim=(1, 2, 3)) - full.mean(dim=(1, 2, 3)) > 0.15).float().mean() > 0.8


@pytest.mark.parametrize(("effect", "images"), [(synthetic_stain, light(50)), (density, cells(50)[0])])
def test_images_of_the_other_kind_are_left_alone(effect, images: torch.Tensor) -> None:
    strengths = {} if effect is synthetic_stain else {"mixing": 0.15, "octaves": 0.6}
    assert torch.equal(effect(draw(50), images.clone(), probability=1.0, **strengths), images)


@pytest.mark.parametrize(("effect", "images"), [(synthetic_stain, cells(600)[0]), (density, light(600))])
def test_a_probability_is_one(effect, images: torch.Tensor) -> None:
    strengths = {} if effect is synthetic_stain else {"mixing": 0.15, "octaves": 0.6}
    changed = effect(draw(600), images.clone(), probability=0.3, **strengths) != images
    assert changed.any(dim=3).any(dim=2).any(dim=1).float().mean() == pytest.approx(0.3, abs=0.06)


def test_strength_multiplies_all_densities_alike_within_its_bounds() -> None:
    images = density(draw(500), light(500), probability=1.0, mixing=0.0, octaves=1.0)[:, :, 0, 0]
    times = images.log() / LIGHT.log()
    torch.testing.assert_close(times, times[:, :1].expand(-1, 3), atol=1e-4, rtol=1e-4)
    octaves = torch.log2(times[:, 0])
    assert octaves.abs().max() <= 1 + 1e-4
    assert octaves.min() < -0.9
    assert octaves.max() > 0.9


def test_mixing_by_hand() -> None:
    """Densities d become (I + M) d, the entries of M uniform up to 0.2; white, which absorbs nothing, stays white."""
    images = density(draw(2000), light(2000), probability=1.0, mixing=0.2, octaves=0.0)[:, :, 0, 0]
    densities = -LIGHT.log()
    change = -images.log() - densities
    assert (change.abs() <= 0.2 * densities.sum() + 1e-5).all()
    # The variance of a sum of uniform numbers in +-0.2, times the densities: 0.2 ** 2 / 3 of the sum of squares.
    expected = (0.04 / 3 * (densities**2).sum()).sqrt()
    torch.testing.assert_close(change.std(dim=0), expected.expand(3), atol=0, rtol=0.1)
    white = torch.ones(4, 3, 8, 8)
    assert torch.equal(density(draw(4), white.clone(), probability=1.0, mixing=0.2, octaves=1.0), white)
