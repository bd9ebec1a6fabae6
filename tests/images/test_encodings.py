"""One picture in many encodings is one image to the networks: types, ranges, compressions, planes, polarity, palettes,
containers, orientations."""

import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.images.contrast import apply_contrast, find_contrast
from pipeline.images.image_file import read_images
from pipeline.params import ContrastParams

CONTRAST = ContrastParams(stretch=True, density=True)
LIMIT = 10**6


def draw_picture(height=96, width=80, count=9, seed=0):
    """Return (H, W) uint8: blurred ellipses on a dark, slightly noisy ground."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width), 12.0, np.float32)
    for _ in range(count):
        spot = np.zeros((height, width), np.uint8)
        centre = int(rng.integers(0, width)), int(rng.integers(0, height))
        axes = int(rng.integers(4, 9)), int(rng.integers(4, 9))
        cv2.ellipse(spot, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        picture += cv2.GaussianBlur(spot.astype(np.float32), (0, 0), 1) * rng.uniform(90, 200)
    return (picture + rng.normal(0, 1.5, picture.shape)).clip(0, 255).round().astype(np.uint8)


PICTURE = draw_picture()
WIDE, RGB = PICTURE.astype(np.float64), np.dstack([PICTURE] * 3)


def see(path, channel=None):
    """Return what the networks see of the only image of a file."""
    ((_, image, _),) = read_images(path, LIMIT, channel)
    return apply_contrast(image, find_contrast(image, CONTRAST))


@pytest.fixture
def reference(tmp_path):
    cv2.imwrite(str(tmp_path / "reference.png"), PICTURE)
    return see(tmp_path / "reference.png")


TYPES = {
    "uint16": PICTURE.astype(np.uint16),
    "12 bits in 16": PICTURE.astype(np.uint16) * 16,
    "all of 16 bits": PICTURE.astype(np.uint16) * 257,
    "uint16 over an offset": PICTURE.astype(np.uint16) + 1000,
    "uint32": PICTURE.astype(np.uint32) * 2**24,
    "uint64": PICTURE.astype(np.uint64) * 2**40,
    "int8": (PICTURE.astype(np.int16) - 128).astype(np.int8),
    "int16 below 0": PICTURE.astype(np.int16) * 100 - 30000,
    "int32": (WIDE * 1e6 - 2**27).astype(np.int32),
    "float16": PICTURE.astype(np.float16),
    "float32 to 1": (WIDE / 255).astype(np.float32),
    "float32 to 0.01": (WIDE / 25500).astype(np.float32),
    "float32 to 1e6": (WIDE / 255 * 1e6).astype(np.float32),
    "float32 below 0": (WIDE / 255 - 7).astype(np.float32),
    "float64, tiny over an offset": WIDE * 1e-9 + 3,
    "float64, huge": (WIDE / 255 - 0.5) * 1e308,
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_types_and_ranges(tmp_path, reference, name, byteorder):
    tifffile.imwrite(tmp_path / "a.tif", TYPES[name], byteorder=byteorder)
    assert np.array_equal(see(tmp_path / "a.tif"), reference)


COMPRESSIONS = {
    "zlib": np.uint8, "lzw": np.uint8, "packbits": np.uint8, "zstd": np.uint8, "lzma": np.uint8, "lerc": np.uint8,
    "png": np.uint8, "webp": np.uint8, "jpegxl": np.uint8, "jpeg2000": np.uint8, "deflate": np.uint16,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 7}, {"tile": (32, 48)}])
def test_compressions_that_lose_nothing(tmp_path, reference, name, layout):
    image = PICTURE.astype(COMPRESSIONS[name])
    how = {"compressionargs": {"level": 0, "lossless": True}} if name in ("webp", "jpegxl", "jpeg2000") else {}
    if name == "webp":  # has no grey
        image, how = RGB, {"compressionargs": {"lossless": True}}
    if name == "jpegxl":
        how = {"compressionargs": {"lossless": True}}
    if name == "jpeg2000":
        how = {"compressionargs": {"level": 0}}
    tifffile.imwrite(tmp_path / "a.tif", image, compression=name, **layout, **how)
    assert np.array_equal(see(tmp_path / "a.tif"), reference)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd"])
@pytest.mark.parametrize(
    ("values", "predictor"),
    [(PICTURE, 2), (TYPES["all of 16 bits"], 2), (TYPES["float32 to 1"], 3), (RGB, 2)],
)
def test_predictors(tmp_path, reference, compression, values, predictor):
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression, predictor=predictor)
    assert np.array_equal(see(tmp_path / "a.tif"), reference)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("extra", [(), ("unassalpha",), ("assocalpha",)])
@pytest.mark.parametrize("factor", [1, 257])
def test_colours_that_are_all_grey(tmp_path, reference, planes, extra, factor):
    samples = [PICTURE.astype(np.uint16 if factor > 1 else np.uint8) * factor] * 3
    samples += [np.full_like(samples[0], 255 * factor)] * len(extra)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.stack(samples, axis=2 if planes == "contig" else 0),
        photometric="rgb",
        planarconfig=planes,
        extrasamples=extra,
    )
    assert np.array_equal(see(tmp_path / "a.tif"), reference)


@pytest.mark.parametrize(
    "inverted",
    [
        255 - PICTURE,
        65535 - TYPES["all of 16 bits"],
        (-1 - TYPES["int16 below 0"]).astype(np.int16),
        (-TYPES["float32 to 1"]).astype(np.float32),
    ],
    ids=lambda array: str(array.dtype),
)
def test_white_that_is_zero(tmp_path, reference, inverted):
    tifffile.imwrite(tmp_path / "a.tif", inverted, photometric="miniswhite")
    assert np.array_equal(see(tmp_path / "a.tif"), reference)


@pytest.mark.parametrize("factor", [1, 257])
@pytest.mark.parametrize("order", [1, -1])
def test_palettes_of_8_and_of_16_bits(tmp_path, reference, factor, order):
    table = np.stack([np.arange(256)[::order] * factor] * 3).astype(np.uint16)
    stored = PICTURE if order == 1 else 255 - PICTURE
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="palette", colormap=table)
    assert np.array_equal(see(tmp_path / "a.tif"), reference)


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_packed_bits(tmp_path, bits, photometric):
    most = 2**bits - 1
    levels = np.round(WIDE / WIDE.max() * most).astype(np.uint16 if bits > 8 else np.uint8)
    cv2.imwrite(str(tmp_path / "same.png"), levels * (2 ** (16 - bits) if bits > 8 else 255 // most))
    stored = levels if photometric == "minisblack" else most - levels
    how = {"bitspersample": bits} if bits > 1 else {}
    tifffile.imwrite(tmp_path / "a.tif", stored if bits > 1 else stored > 0, photometric=photometric, **how)
    assert np.array_equal(see(tmp_path / "a.tif"), see(tmp_path / "same.png"))


CONTAINERS = {
    "PNG of 16 bits": lambda path: cv2.imwrite(str(path.with_suffix(".png")), TYPES["all of 16 bits"]),
    "PNG of colours": lambda path: cv2.imwrite(str(path.with_suffix(".png")), RGB),
    "PNG with opacity": lambda path: cv2.imwrite(
        str(path.with_suffix(".png")), np.dstack([RGB, np.full_like(PICTURE, 255)])
    ),
    "PNG with a palette": lambda path: Image.fromarray(PICTURE).convert("P").save(path.with_suffix(".png")),
    "BigTIFF": lambda path: tifffile.imwrite(path, PICTURE, bigtiff=True),
    "ImageJ": lambda path: tifffile.imwrite(path, PICTURE, imagej=True),
    "ImageJ float": lambda path: tifffile.imwrite(path, TYPES["float32 below 0"], imagej=True),
    "OME": lambda path: tifffile.imwrite(path.with_suffix(".ome.tif"), TYPES["uint16"], ome=True),
    "Pillow": lambda path: Image.fromarray(PICTURE).save(path),
    "Pillow, LZW": lambda path: Image.fromarray(PICTURE).save(path, compression="tiff_lzw"),
    "Pillow, LA": lambda path: Image.fromarray(PICTURE).convert("LA").save(path),
    "Pillow, CMYK": lambda path: Image.fromarray(RGB).convert("CMYK").save(path),
    "OpenCV": lambda path: cv2.imwrite(str(path), TYPES["all of 16 bits"]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(tmp_path, reference, name):
    folder = tmp_path / "in"
    folder.mkdir()
    CONTAINERS[name](folder / "a.tif")
    (path,) = folder.iterdir()
    assert np.array_equal(see(path), reference)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_orientations(tmp_path, reference, orientation, suffix):
    """What Pillow's own transposition turns upright is stored turned."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    upright = Image.fromarray(PICTURE)
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[274] = orientation
    if suffix == ".tif":
        stored.save(tmp_path / "a.tif", tiffinfo={274: orientation})
    else:
        stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(see(tmp_path / f"a{suffix}"), reference)


def test_a_jpeg_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PICTURE).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=97)
    seen = see(tmp_path / "a.jpg")
    assert seen.shape[:2] == PICTURE.shape
    assert np.corrcoef(seen[..., 0].ravel(), PICTURE.ravel())[0, 1] > 0.99


def test_a_jpeg_in_a_tiff(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "JPEG", quality=97)
    Image.fromarray(PICTURE).save(tmp_path / "a.tif", compression="jpeg", quality=97)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert np.array_equal(see(tmp_path / "a.tif"), see(tmp_path / "a.jpg"))
