"""Augmentation of a batch: every strength does what it says, image and label map together, each image for itself."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from pipeline.compose import compose_params
from pipeline.errors import InputError
from pipeline.images.augment import build_augment, build_recolour, crop_batch
from pipeline.images.effects import EFFECTS
from pipeline.params import AugmentParams

TILE, CROP = 80, 64
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])


@pytest.fixture(autouse=True)
def one_thread():
    """Keep to one thread: the batches here are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def batch():
    """Return images of noise (16, 3, T, T) and label maps of blocks with ids up to 100,000."""
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, TILE, TILE), generator=numbers, dtype=torch.uint8)
    ids = torch.randint(0, 100_001, (16, 8, 8), generator=numbers) * torch.randint(0, 2, (16, 8, 8), generator=numbers)
    return images, ids.repeat_interleave(10, 1).repeat_interleave(10, 2).int()


STRONG = {
    "flips": {},
    "rotation": {"deg": 30.0},
    "zoom": {"octaves": 0.6},
    "shear": {"deg": 8.0},
    "translation": {"px": 5.0},
    "elastic": {"probability": 1.0, "std_px": 4.0, "spacing_px": 24},
    "channel_shuffle": {"probability": 0.5},
    "to_gray": {"probability": 0.5},
    "color_matrix": {"std": 0.3},
    "contrast": {"octaves": 0.8},
    "brightness": {"shift": 0.3},
    "inversion": {"probability": 0.5},
    "gamma": {"octaves": 0.8},
    "blur": {"probability": 0.5, "sigma_px": 1.5},
    "noise": {"std": 0.1},
}


def build(**effects):
    """Return what augments a batch on the device by some effects."""
    return build_augment(AugmentParams(backend="device", effects=effects))


@pytest.fixture
def strong():
    """Return what augments by every effect on the device."""
    assert STRONG.keys() == EFFECTS.keys()
    return build(**STRONG)


def augment(images, label_maps, seed=0, crop_px=CROP, **effects):
    """Augment by some effects, with numbers of a seed."""
    return build(**effects)(images, label_maps, crop_px, torch.Generator().manual_seed(seed))


def constant(colour, count=64, size=8):
    """Return `count` images of one colour (r, g, b) and empty label maps."""
    images = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(count, 3, size, size).contiguous()
    return images, torch.zeros(count, size, size, dtype=torch.int32)


def ruler(count=8, size=TILE):
    """Return blank images and label maps whose id tells the place: 1000 * row + col."""
    rows, cols = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.zeros(count, 3, size, size, dtype=torch.uint8), (1000 * rows + cols).expand(count, -1, -1).int()


def displacement(ids, size=TILE):
    """Return (B, C, C, 2): by how many px (row, col) each pixel of an augmented ruler was moved."""
    crop = ids.shape[-1]
    rows, cols = torch.meshgrid(torch.arange(crop), torch.arange(crop), indexing="ij")
    first = (size - crop) // 2
    ids = ids.long()
    return torch.stack([ids // 1000 - rows - first, ids % 1000 - cols - first], dim=-1).double()


def disc(radius, count=64, size=TILE):
    """Return images of a white disc in the middle and its label maps."""
    axis = torch.arange(size) - (size - 1) / 2
    label_map = (axis[:, None] ** 2 + axis**2 <= radius**2).int()
    images = (label_map * 255).to(torch.uint8).expand(count, 3, -1, -1).contiguous()
    return images, label_map.expand(count, -1, -1).contiguous()


class TestWhole:
    def test_without_strengths_it_is_the_middle_of_the_tile(self, batch):
        images, label_maps = augment(*batch)
        expected_images, expected_label_maps = crop_batch(*batch, CROP)
        torch.testing.assert_close(images, expected_images, atol=1e-3, rtol=0)
        assert torch.equal(label_maps, expected_label_maps)

    def test_crop_batch_by_hand(self, batch):
        images, label_maps = crop_batch(*batch, CROP)
        assert torch.equal((images * 255).round().byte(), batch[0][..., 8:72, 8:72])
        assert torch.equal(label_maps, batch[1][:, 8:72, 8:72])
        assert images.dtype == torch.float32

    def test_types_range_and_ids(self, batch, strong):
        images, label_maps = strong(*batch, CROP, torch.Generator().manual_seed(0))
        assert images.shape == (16, 3, CROP, CROP)
        assert label_maps.shape == (16, CROP, CROP)
        assert images.dtype == torch.float32
        assert label_maps.dtype == torch.int32
        assert images.isfinite().all()
        assert 0 <= images.min() < 0.05
        assert 0.95 < images.max() <= 1
        for label_map, source in zip(label_maps, batch[1], strict=True):
            assert torch.isin(label_map, source).all()
        assert label_maps.max() > 65536

    def test_the_same_numbers_give_the_same_batch(self, batch, strong):
        first, again, other = (strong(*batch, CROP, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])

    def test_every_image_has_its_own_draws(self, batch, strong):
        images, label_maps = (tensor[:1].expand_as(tensor) for tensor in batch)
        images, label_maps = strong(images, label_maps, CROP, torch.Generator().manual_seed(0))
        for i in range(1, 16):
            assert not torch.equal(images[0], images[i])
            assert not torch.equal(label_maps[0], label_maps[i])

    def test_the_input_is_left_alone(self, batch, strong):
        before = [tensor.clone() for tensor in batch]
        strong(*batch, CROP, torch.Generator().manual_seed(0))
        assert all(torch.equal(tensor, kept) for tensor, kept in zip(batch, before, strict=True))

    @pytest.mark.parametrize("crop_px", [1, 63, 64, 80])
    def test_crops_of_any_size(self, batch, crop_px):
        sharp = build(**(STRONG | {"blur": None}))  # it reaches beyond a crop of one pixel
        images, label_maps = sharp(*batch, crop_px, torch.Generator().manual_seed(0))
        assert images.shape == (16, 3, crop_px, crop_px)
        assert label_maps.shape == (16, crop_px, crop_px)

    def test_everything_stays_on_the_device(self, strong, monkeypatch):
        """On fake CUDA tensors a tensor of another device, or a wait for the device, raises."""
        monkeypatch.setattr(torch.Tensor, "cpu", lambda _: pytest.fail("copied to the CPU"))
        with FakeTensorMode():
            images = torch.empty(4, 3, TILE, TILE, dtype=torch.uint8, device="cuda")
            label_maps = torch.empty(4, TILE, TILE, dtype=torch.int32, device="cuda")
            for outputs in (
                strong(images, label_maps, CROP, None),
                crop_batch(images, label_maps, CROP),
            ):
                assert [tensor.device.type for tensor in outputs] == ["cuda", "cuda"]
                assert [tuple(tensor.shape) for tensor in outputs] == [(4, 3, CROP, CROP), (4, CROP, CROP)]


class TestGeometry:
    def test_image_and_labels_are_warped_alike(self, batch):
        label_maps = batch[1]
        images = ((label_maps > 0) * 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
        geometry = {name: options for name, options in STRONG.items() if EFFECTS[name].kind in ("warp", "displacement")}
        warped, ids = augment(images, label_maps, **geometry)
        shown, nuclei = (warped[:, 0] > 0.5).float(), (ids > 0).float()
        near_border = F.max_pool2d(nuclei, 5, 1, 2) != -F.max_pool2d(-nuclei, 5, 1, 2)
        assert torch.equal(shown[~near_border], nuclei[~near_border])
        assert (~near_border).float().mean() > 0.4
        assert ((warped[:, 0] > 0.5) == (ids > 0)).float().mean() > 0.98

    def test_flips_are_the_eight_symmetries_of_the_square(self):
        label_map = torch.arange(64).view(8, 8)
        images = (label_map * 4).to(torch.uint8).expand(400, 3, 8, 8)
        warped, ids = augment(images, label_map.expand(400, 8, 8), crop_px=8, flips={})
        symmetries = [np.rot90(m, k) for m in (label_map.numpy(), label_map.numpy().T) for k in range(4)]
        found = [next(i for i, m in enumerate(symmetries) if np.array_equal(m, one.numpy())) for one in ids]
        counts = np.bincount(found, minlength=8)
        assert ((counts >= 25) & (counts <= 80)).all()  # 50 each, give or take more than 3 deviations
        torch.testing.assert_close(warped, (ids * 4 / 255)[:, None].expand(-1, 3, -1, -1), atol=1e-4, rtol=0)

    def test_zoom_changes_areas_within_its_bounds_both_ways(self):
        images, label_maps = disc(14)
        _, ids = augment(images, label_maps, zoom={"octaves": 1.0})
        octaves = torch.log2(ids.sum(dim=(1, 2)) / label_maps.sum(dim=(1, 2))) / 2
        assert octaves.abs().max() <= 1.05
        assert octaves.min() < -0.7
        assert octaves.max() > 0.7
        assert octaves.mean().abs() < 0.25

    @pytest.mark.parametrize(
        "effects",
        [{"rotation": {"deg": 45.0}}, {"shear": {"deg": 15.0}}, {"rotation": {"deg": 45.0}, "shear": {"deg": 15.0}}],
    )
    def test_rotation_and_shear_keep_areas(self, effects):
        images, label_maps = disc(16)
        _, ids = augment(images, label_maps, **effects)
        assert (ids.sum(dim=(1, 2)) / label_maps.sum(dim=(1, 2))).sub(1).abs().max() < 0.02

    def test_rotation_turns_about_the_middle_within_its_bounds(self):
        """What lies 30 px right of the middle is found at the angle by which the tile was turned."""
        _, ids = augment(
            *ruler(64), crop_px=61, rotation={"deg": 30.0}
        )  # an even tile, an odd crop: (30, 30) is its middle
        moved = displacement(ids)
        assert moved[:, 30, 30].abs().max() <= 1
        right = moved[:, 30, 60]
        angles = torch.rad2deg(torch.atan2(right[:, 0], 30 + right[:, 1]))
        assert angles.abs().max() <= 32
        assert angles.min() < -20
        assert angles.max() > 20
        lengths = torch.hypot(right[:, 0], 30 + right[:, 1])
        assert (lengths - 30).abs().max() < 1.5

    def test_shear_is_within_its_bounds(self):
        """Along one axis: rows keep their place and slide by at most tan(15 deg) of their distance."""
        moved = displacement(augment(*ruler(64), shear={"deg": 15.0})[1])
        assert moved[..., 0].abs().max() == 0
        limit = math.tan(math.radians(15)) * 31.5
        assert moved[..., 1].abs().max() <= limit + 0.5
        assert moved[..., 1].abs().max() > 0.7 * limit

    def test_translation_is_within_its_bounds_both_ways(self):
        moved = displacement(augment(*ruler(64), translation={"px": 5.0})[1])
        assert torch.equal(moved, moved[:, :1, :1].expand_as(moved))
        for axis in (0, 1):
            assert moved[..., axis].abs().max() <= 5
            assert moved[..., axis].min() <= -4
            assert moved[..., axis].max() >= 4

    def test_beyond_the_tile_is_mirrored(self):
        """With a crop as large as the tile, shifted by at most 5 px, only pixels beside the border come twice."""
        _, ids = augment(*ruler(32, 16), crop_px=16, translation={"px": 5.0})
        rows, cols = ids.long() // 1000, ids.long() % 1000
        assert rows.min() >= 0
        assert max(rows.max(), cols.max()) <= 15
        steps = (rows[:, 1:] - rows[:, :-1]).abs()
        assert steps.max() == 1  # forwards, backwards after the mirror
        assert (steps == 0).sum(dim=1).max() <= 1  # and the border itself twice

    @pytest.mark.parametrize(
        "elastic",
        [{"probability": 1.0, "std_px": 0.0, "spacing_px": 32}, {"probability": 0.0, "std_px": 5.0, "spacing_px": 32}],
    )
    def test_no_elastic_deformation_moves_nothing(self, elastic):
        assert not displacement(augment(*ruler(), elastic=elastic)[1]).any()

    def test_elastic_displacements_have_about_the_deviation_asked_for(self):
        """Between the points of the coarse grid interpolation averages, so the deviation there is smaller."""
        elastic = {"probability": 1.0, "std_px": 3.0, "spacing_px": 16}
        moved = displacement(augment(*ruler(64), elastic=elastic)[1])
        at_points = moved[:, [[0], [-1]], [0, -1]]  # the corners are points of the coarse grid
        assert at_points.std() == pytest.approx(3.0, rel=0.2)
        assert 0.6 * 3 < moved.std() < 1.1 * 3
        assert moved.mean().abs() < 0.3

    def test_elastic_deformation_comes_with_its_probability(self):
        elastic = {"probability": 0.5, "std_px": 3.0, "spacing_px": 16}
        moved = displacement(augment(*ruler(100), elastic=elastic)[1]).abs().amax(dim=(1, 2, 3)) > 0
        assert 35 <= moved.sum() <= 65


class TestColours:
    def test_inversion(self, batch):
        images, label_maps = augment(*batch, inversion={"probability": 1.0})
        expected_images, expected_label_maps = crop_batch(*batch, CROP)
        torch.testing.assert_close(images, 1 - expected_images, atol=1e-3, rtol=0)
        assert torch.equal(label_maps, expected_label_maps)

    @pytest.mark.parametrize("effect", ["inversion", "channel_shuffle", "to_gray"])
    def test_a_probability_is_one(self, effect):
        images, _ = augment(*constant((200, 100, 30), 600), crop_px=8, **{effect: {"probability": 0.3}})
        changed = (images[:, :, 0, 0] - torch.tensor([200, 100, 30]) / 255).abs().amax(dim=1) > 0.01
        share = {"channel_shuffle": 0.3 * 5 / 6}.get(effect, 0.3)  # one order in six is the old one
        assert changed.float().mean() == pytest.approx(share, abs=0.07)

    def test_channel_shuffle_gives_every_order_alike(self):
        images, _ = augment(*constant((255, 102, 0), 600), crop_px=8, channel_shuffle={"probability": 1.0})
        colours = [tuple(colour) for colour in (images[:, :, 3, 3] * 255).round().int().tolist()]
        assert set(colours) == set(permutations((255, 102, 0)))
        assert all(65 <= colours.count(order) <= 140 for order in set(colours))

    def test_grey_is_luminance_in_all_channels(self, batch):
        images, _ = augment(*batch, to_gray={"probability": 1.0})
        expected = torch.einsum("bchw,c->bhw", crop_batch(*batch, CROP)[0], LUMINANCE)
        for channel in range(3):
            torch.testing.assert_close(images[:, channel], expected, atol=1e-3, rtol=0)

    def test_brightness_is_added_within_its_bounds(self):
        images, _ = augment(*constant((102, 102, 102)), crop_px=8, brightness={"shift": 0.2})
        added = images[:, :, 0, 0] - 0.4
        assert added.abs().max() <= 0.2 + 1e-5
        assert added.min() < -0.1
        assert added.max() > 0.1
        assert (added == added[:, :1]).all()

    @pytest.mark.parametrize("inversion", [0.0, 1.0])
    def test_contrast_turns_about_mid_grey(self, inversion):
        """From 0.4 to 0.5 - 0.1 c, for c from 1/2 to 2; inverted, as far above 0.5."""
        images, _ = augment(
            *constant((102, 102, 102)), crop_px=8, contrast={"octaves": 1.0}, inversion={"probability": inversion}
        )
        below = (0.5 - images[:, 0, 0, 0]) * (1 - 2 * inversion)
        octaves = torch.log2(below / 0.1)
        assert octaves.abs().max() <= 1 + 1e-4
        assert octaves.min() < -0.6
        assert octaves.max() > 0.6

    def test_gamma_is_a_power_within_its_bounds_and_finite_at_black(self):
        images, _ = augment(*constant((51, 102, 0)), crop_px=8, gamma={"octaves": 1.0})
        colours = images[:, :, 0, 0].double()
        powers = torch.log(colours[:, :2]) / torch.log(torch.tensor([0.2, 0.4]).double())
        torch.testing.assert_close(powers[:, 0], powers[:, 1], atol=1e-3, rtol=0)
        octaves = torch.log2(powers[:, 0])
        assert octaves.abs().max() <= 1 + 1e-3
        assert octaves.min() < -0.6
        assert octaves.max() > 0.6
        assert (colours[:, 2] < 0.05).all()

    def test_the_colour_matrix_mixes_channels_about_the_identity(self):
        """One entry at a time: of a colour (0.4, 0, 0) the red keeps 1 + n and the green gets n, n ~ N(0, 0.1)."""
        images, _ = augment(*constant((102, 0, 0), 2000, 2), crop_px=2, color_matrix={"std": 0.1})
        red, green = images[:, 0, 0, 0] / 0.4, images[:, 1, 0, 0] / 0.4
        assert red.mean() == pytest.approx(1.0, abs=0.01)
        assert red.std() == pytest.approx(0.1, rel=0.1)
        assert (green**2).mean().sqrt() == pytest.approx(0.1 / math.sqrt(2), rel=0.1)  # its lower half is cut at 0

    def test_noise_is_at_most_as_strong_as_asked_for(self):
        images, _ = augment(*constant((128, 128, 128), 64, 32), crop_px=32, noise={"std": 0.1})
        deviations = images.std(dim=(1, 2, 3))
        assert deviations.max() < 0.105
        assert deviations.min() < 0.02
        assert deviations.max() > 0.08
        assert (images.mean(dim=(1, 2, 3)) - 128 / 255).abs().max() < 0.01

    def test_blur_keeps_flat_images_and_smooths_others(self, batch):
        flat, _ = augment(*constant((200, 100, 30), 8, 16), crop_px=16, blur={"probability": 1.0, "sigma_px": 2.0})
        torch.testing.assert_close(flat, constant((200, 100, 30), 8, 16)[0] / 255, atol=1e-5, rtol=0)
        blurred, label_maps = augment(*batch, blur={"probability": 1.0, "sigma_px": 2.0})
        sharp, expected = crop_batch(*batch, CROP)
        assert (blurred.std(dim=(1, 2, 3)) <= sharp.std(dim=(1, 2, 3)) + 1e-4).all()
        assert (blurred.std(dim=(1, 2, 3)) < 0.5 * sharp.std(dim=(1, 2, 3))).any()
        assert torch.equal(label_maps, expected)

    def test_blur_is_gaussian(self):
        """A point becomes a bell whose variance is sigma squared, the same along both axes and in all channels."""
        images, label_maps = constant((0, 0, 0), 16, 33)
        images[:, :, 16, 16] = 255
        blurred, _ = augment(images, label_maps, crop_px=33, blur={"probability": 1.0, "sigma_px": 2.0})
        axis = torch.arange(33) - 16.0
        variances = [(blurred.sum(dim=dim) * axis**2).sum(dim=-1) for dim in (2, 3)]
        torch.testing.assert_close(variances[0], variances[1], atol=1e-3, rtol=0)
        torch.testing.assert_close(variances[0], variances[0][:, :1].expand(-1, 3), atol=1e-3, rtol=0)
        assert variances[0].max() <= 4
        assert variances[0].max() > 1.5
        torch.testing.assert_close(blurred.sum(dim=(2, 3)), torch.ones(16, 3), atol=1e-4, rtol=0)


class TestChoice:
    def test_nothing_is_drawn_for_an_effect_that_is_left_out_or_null(self, batch):
        numbers = torch.Generator().manual_seed(0)
        before = numbers.get_state()
        build(**dict.fromkeys(EFFECTS))(*batch, CROP, numbers)
        assert torch.equal(numbers.get_state(), before)

    def test_the_order_of_the_names_changes_nothing(self, batch):
        backwards = dict(reversed(STRONG.items()))
        for first, second in zip(augment(*batch, **STRONG), augment(*batch, **backwards), strict=True):
            assert torch.equal(first, second)

    def test_without_a_backend_and_with_that_of_the_cpu_tiles_are_cropped(self, batch):
        for backend in (None, "albumentations"):
            crop = build_augment(AugmentParams(backend=backend, effects=STRONG))
            for first, second in zip(crop(*batch, CROP, None), crop_batch(*batch, CROP), strict=True):
                assert torch.equal(first, second)

    @pytest.mark.parametrize("choice", ["none", "weak", "strong", "em"])
    def test_the_groups_of_conf_are_understood(self, batch, choice):
        augmentation = build_augment(compose_params([f"augment={choice}"]).augment)
        images, _ = augmentation(*batch, CROP, torch.Generator().manual_seed(0))
        assert torch.equal(images, crop_batch(*batch, CROP)[0]) == (choice == "none")

    def test_effects_of_the_cpu_are_known_and_left_to_it(self, batch):
        images, _ = augment(*batch, clahe={"probability": 1.0})
        torch.testing.assert_close(images, crop_batch(*batch, CROP)[0], atol=1e-3, rtol=0)

    @pytest.mark.parametrize(
        ("effects", "message"),
        [
            ({"zooom": {}}, r"augment\.effects\.zooom: no such effect; there are .*zoom.*jpeg"),
            ({"zoom": {}}, r"augment\.effects\.zoom\.octaves: missing"),
            ({"flips": {"deg": 1.0}}, r"augment\.effects\.flips\.deg: no such key"),
            ({"blur": {"probability": 1.5, "sigma_px": 1.0}}, r"augment\.effects\.blur\.probability: .*got 1\.5"),
            ({"rotation": {"deg": -1.0}}, r"augment\.effects\.rotation\.deg: .*got -1"),
        ],
    )
    @pytest.mark.parametrize("backend", ["device", "albumentations", None])
    def test_what_is_unknown_missing_or_out_of_bounds_is_refused(self, backend, effects, message):
        with pytest.raises(InputError, match=message) as refusal:
            build_augment(AugmentParams(backend=backend, effects=effects))
        assert "\n" not in str(refusal.value)


class TestRecolouring:
    """What the readers of sizes are fitted on beside images as they are."""

    CPU = torch.device("cpu")

    def test_colours_change_and_nothing_moves(self) -> None:
        image = torch.full((1, 3, 40, 40), 0.1)
        image[..., 10:20, 25:35] = 0.8
        recolour = build_recolour(AugmentParams(backend="device", effects=STRONG | {"noise": None}), self.CPU)
        assert recolour is not None
        inside = torch.zeros(40, 40, dtype=torch.bool)
        inside[14:16, 29:31] = True
        outside = torch.zeros(40, 40, dtype=torch.bool)
        outside[:4] = outside[-4:] = True
        changed = torch.cat([recolour(image.clone()) for _ in range(40)])
        assert changed.shape == (40, 3, 40, 40)
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert (changed - image).abs().mean() > 0.05
        apart = (changed[..., inside].mean(dim=(1, 2)) - changed[..., outside].mean(dim=(1, 2))).abs()
        assert apart.median() > 0.1

    def test_the_draws_are_the_same_in_every_process(self) -> None:
        params = compose_params(["train=cpu"]).augment
        first, second = (build_recolour(params, self.CPU) for _ in range(2))
        image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        assert first is not None
        assert second is not None
        for _ in range(3):
            assert torch.equal(first(image.clone()), second(image.clone()))

    @pytest.mark.parametrize(
        ("backend", "effects"), [(None, {}), ("device", {"flips": {}}), ("albumentations", {"noise": {"std": 0.1}})]
    )
    def test_there_is_none_where_the_device_changes_no_colours(self, backend, effects) -> None:
        assert build_recolour(AugmentParams(backend=backend, effects=effects), self.CPU) is None
