"""What a file says of its samples, channels and pages is what its pictures are; less than it promises is refused."""

import re
import struct

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.errors import InputError
from pipeline.images.image_file import read_images

LIMIT = 10**6
RNG = np.random.default_rng(0)
# Stains, each (H, W) uint8 with values of its own.
DAPI, GFP, RFP, CY5 = (RNG.integers(20 * i, 20 * i + 20, (24, 30), dtype=np.uint8) for i in range(1, 5))
PAGES = np.stack([DAPI, GFP, RFP])


def read(path, channel=None):
    return [(name, image) for name, image, _ in read_images(path, LIMIT, channel)]


def grey(image):
    return np.dstack([image] * 3)


def assert_images(path, *expected, channel=None):
    found = [image for _, image in read(path, channel)]
    assert len(found) == len(expected)
    for image, wanted in zip(found, expected, strict=True):
        assert np.array_equal(image, wanted if wanted.ndim == 3 else grey(wanted))


def refusal(path):
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: ") as caught:
        read(path)
    return str(caught.value)


class TestChannels:
    @pytest.mark.parametrize("count", [2, 3, 4])
    @pytest.mark.parametrize("kind", [{"imagej": True}, {"ome": True}, {"photometric": "minisblack"}])
    @pytest.mark.parametrize("scale", [1, 16])
    def test_channels_are_images_of_their_own_however_many(self, tmp_path, count, kind, scale):
        path = tmp_path / "a.ome.tif"
        stains = np.stack([DAPI, GFP, RFP, CY5][:count]).astype(np.uint16 if scale > 1 else np.uint8) * scale
        metadata = {} if "photometric" in kind else {"metadata": {"axes": "CYX"}}
        tifffile.imwrite(path, stains, **kind, **metadata)
        names, images = zip(*read(path), strict=True)
        assert names == tuple(f"a.ome.page{i:03d}" for i in range(count))
        for number, image in enumerate(images):
            assert (image == image[..., :1]).all()
            assert np.corrcoef(image[..., 0].ravel(), stains[number].ravel())[0, 1] > 0.98

    def test_one_channel_is_chosen_of_a_stack_and_keeps_its_number(self, tmp_path):
        path = tmp_path / "a.tif"
        stack = np.stack([np.stack([DAPI, GFP]), np.stack([RFP, CY5])])
        tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZCYX"})
        assert_images(path, DAPI, GFP, RFP, CY5)
        assert_images(path, GFP, CY5, channel=1)
        assert [name for name, _ in read(path, 1)] == ["a.page001", "a.page003"]
        assert {item.channels for item in read_images(path, LIMIT)} == {2}

    def test_a_channel_that_is_not_there(self, tmp_path):
        cv2.imwrite(str(tmp_path / "a.png"), DAPI)
        assert_images(tmp_path / "a.png", DAPI, channel=0)
        with pytest.raises(InputError, match=r"a\.png: no channel 1; it has 1, counted from 0"):
            read(tmp_path / "a.png", 1)

    @pytest.mark.parametrize("planes", ["contig", "separate"])
    def test_a_second_sample_that_is_not_tagged_is_another_stain(self, tmp_path, planes):
        samples = np.stack([DAPI, GFP], axis=2 if planes == "contig" else 0)
        for extra in (["unspecified"], None):
            how = {} if extra is None else {"extrasamples": extra}
            tifffile.imwrite(tmp_path / "a.tif", samples, photometric="minisblack", planarconfig=planes, **how)
            assert_images(tmp_path / "a.tif", DAPI, GFP)

    @pytest.mark.parametrize("planes", ["contig", "separate"])
    def test_a_fourth_sample_that_is_not_tagged_is_another_stain(self, tmp_path, planes):
        samples = np.stack([DAPI, GFP, RFP, CY5], axis=2 if planes == "contig" else 0)
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, samples, photometric="rgb", planarconfig=planes, extrasamples=["unspecified"])
        assert_images(path, np.dstack([DAPI, GFP, RFP]), CY5)
        assert_images(path, CY5, channel=1)

    @pytest.mark.parametrize("planes", ["contig", "separate"])
    def test_white_that_is_zero_holds_for_every_stain(self, tmp_path, planes):
        samples = 255 - np.stack([DAPI, GFP, RFP], axis=2 if planes == "contig" else 0)
        tifffile.imwrite(tmp_path / "a.tif", samples, photometric="miniswhite", planarconfig=planes)
        assert_images(tmp_path / "a.tif", DAPI, GFP, RFP)

    def test_opacity_that_is_tagged(self, tmp_path):
        """One that was multiplied in already is over black as it stands; the other is multiplied in."""
        opacity = np.full_like(DAPI, 255)
        opacity[:, 15:] = 0
        samples = np.dstack([DAPI, GFP, RFP, opacity])
        for kind, right in (
            ("assocalpha", samples[..., :3]),
            ("unassalpha", samples[..., :3] * (opacity > 0)[..., None]),
        ):
            tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", extrasamples=[kind])
            assert_images(tmp_path / "a.tif", right)

    def test_opacity_and_a_stain(self, tmp_path):
        opaque = np.full_like(DAPI, 255)
        samples = np.dstack([DAPI, opaque, GFP])
        tifffile.imwrite(
            tmp_path / "a.tif", samples, photometric="minisblack", extrasamples=["unassalpha", "unspecified"]
        )
        assert_images(tmp_path / "a.tif", DAPI, GFP)

    def test_colours_are_one_picture_in_rgb_and_three_stains_in_grey(self, tmp_path):
        samples = np.dstack([DAPI, GFP, RFP])
        tifffile.imwrite(tmp_path / "rgb.tif", samples, photometric="rgb")
        tifffile.imwrite(tmp_path / "stains.tif", samples, photometric="minisblack", planarconfig="contig")
        assert_images(tmp_path / "rgb.tif", samples)
        assert_images(tmp_path / "stains.tif", DAPI, GFP, RFP)

    @pytest.mark.parametrize("planes", ["contig", "separate"])
    def test_inks_are_mixed(self, tmp_path, planes):
        """Cyan takes red away, and black all of it: (255 - 51) * (255 - 85) / 255 = 136."""
        inks = np.zeros((8, 8, 4), np.uint8)
        inks[..., 0], inks[:4, :, 3] = 51, 85
        stored = inks if planes == "contig" else np.moveaxis(inks, 2, 0)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="separated", planarconfig=planes)
        ((_, image),) = read(tmp_path / "a.tif")
        assert image[0, 0].tolist() == [136, 170, 170]
        assert image[7, 0].tolist() == [204, 255, 255]

    @pytest.mark.parametrize("space", ["cielab", "icclab", "ycbcr", "linear_raw"])
    def test_other_colour_spaces_are_refused_by_name(self, tmp_path, space):
        tifffile.imwrite(tmp_path / "a.tif", np.dstack([DAPI, GFP, RFP]), photometric=space)
        assert f"colour space {space.upper()}; save it as grey or RGB" in refusal(tmp_path / "a.tif")

    def test_inks_in_a_jpeg_are_refused_by_name(self, tmp_path):
        Image.fromarray(np.dstack([DAPI, GFP, RFP])).convert("CMYK").save(tmp_path / "a.jpg")
        assert "colour space CMYK" in refusal(tmp_path / "a.jpg")

    def test_smaller_copies_are_no_images(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(DAPI, metadata=None)
            file.write(DAPI[::2, ::2], subfiletype=1, metadata=None)
        assert_images(tmp_path / "a.tif", DAPI)


def write_stack(path, **options):
    tifffile.imwrite(path, PAGES, photometric="minisblack", **options)


def write_pages(path):
    with tifffile.TiffWriter(path) as file:
        for page in PAGES:
            file.write(page, contiguous=False, metadata=None)


STACKS = {
    "ImageJ": lambda path: write_stack(path, imagej=True, metadata={"axes": "ZYX"}),
    "ImageJ, channels": lambda path: write_stack(path, imagej=True, metadata={"axes": "CYX"}),
    "tifffile": write_stack,
    "pages": write_pages,
    "OME": lambda path: write_stack(path, ome=True, metadata={"axes": "ZYX"}),
    "deflated": lambda path: write_stack(path, compression="zlib"),
    "LZW": lambda path: write_stack(path, compression="lzw"),
    "tiles": lambda path: write_stack(path, tile=(16, 16)),
    "OpenCV": lambda path: cv2.imwritemulti(str(path), list(PAGES)),
    "JPEG": lambda path: tifffile.imwrite(path, DAPI, compression="jpeg"),
}


class TestIncomplete:
    @pytest.mark.parametrize("name", STACKS)
    @pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
    def test_a_file_that_was_cut_is_refused(self, tmp_path, name, share):
        path = tmp_path / "a.tif"
        STACKS[name](path)
        whole = path.read_bytes()
        assert len(read(path)) == (1 if name == "JPEG" else 3)
        path.write_bytes(whole[: int(share * len(whole))])
        refusal(path)

    @pytest.mark.parametrize(
        ("name", "old", "new", "words"),
        [
            ("ImageJ", b"images=3", b"images=9", "promises 9 images, and it holds 3"),
            ("ImageJ", b"slices=3", b"slices=7", "promises 7 images, and it holds 3"),
            ("ImageJ, channels", b"channels=3", b"channels=4", "promises 4 images, and it holds 3"),
            ("OME", b'SizeZ="3"', b'SizeZ="5"', "pages are missing"),
            ("tifffile", b'"shape": [3,', b'"shape": [4,', "cut short"),
        ],
    )
    def test_a_description_that_promises_more(self, tmp_path, name, old, new, words):
        path = tmp_path / "a.tif"
        STACKS[name](path)
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))
        assert words in refusal(path)

    @pytest.mark.parametrize(
        ("compression", "encode"), [("lzw", imagecodecs.lzw_encode), ("zstd", imagecodecs.zstd_encode)]
    )
    def test_a_strip_that_unpacks_to_less(self, tmp_path, compression, encode):
        half = iter([encode(DAPI[:12].tobytes())])
        tifffile.imwrite(tmp_path / "a.tif", half, shape=DAPI.shape, dtype=np.uint8, compression=compression)
        assert f"of compression {compression.upper()}" in refusal(tmp_path / "a.tif")

    def test_a_strip_that_is_not_there(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", DAPI, rowsperstrip=8)
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
            counts = file.pages.first.tags["StripByteCounts"]
            counts.overwrite((counts.value[0], 0, counts.value[2]))
        assert "of no bytes" in refusal(tmp_path / "a.tif")

    def test_a_jpeg_of_which_a_part_would_be_made_up(self, tmp_path):
        """The mark of its end is put behind the cut."""
        content = cv2.imencode(".jpg", DAPI)[1].tobytes()
        (tmp_path / "a.jpg").write_bytes(content[: len(content) * 2 // 3] + b"\xff\xd9")
        assert "a JPEG that is damaged" in refusal(tmp_path / "a.jpg")

    def test_a_png_of_which_a_part_is_damaged(self, tmp_path):
        content = bytearray(cv2.imencode(".png", DAPI)[1].tobytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "a.png").write_bytes(content)
        assert "a PNG that is damaged" in refusal(tmp_path / "a.png")

    def test_an_animated_png(self, tmp_path):
        Image.fromarray(DAPI).save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(GFP)])
        assert "an animated PNG; save its frames as files" in refusal(tmp_path / "a.png")

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
    def test_an_empty_file_is_called_empty(self, tmp_path, name):
        (tmp_path / name).touch()
        assert "empty, 0 bytes" in refusal(tmp_path / name)

    @pytest.mark.parametrize("content", [b"GIF89a", b"BM", b"hello", struct.pack("<4sI", b"RIFF", 9)])
    def test_other_formats_are_told_what_is_taken(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        assert "no PNG, JPEG or TIFF" in refusal(tmp_path / "a.png")

    @pytest.mark.parametrize("start", [b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0\0\0"])
    def test_a_tiff_that_ends_at_once(self, tmp_path, start):
        (tmp_path / "a.tif").write_bytes(start)
        refusal(tmp_path / "a.tif")

    @pytest.mark.parametrize("orientation", [9, 77])
    def test_an_orientation_that_is_none(self, tmp_path, orientation):
        tifffile.imwrite(tmp_path / "a.tif", DAPI, extratags=[(274, 3, 1, orientation, True)])
        assert f"its orientation is {orientation}" in refusal(tmp_path / "a.tif")
