"""Draw the embedded sample from the competition's stage1_train.zip; the same file and seed write the same bytes.

    python data/make_sample.py stage1_train.zip data/sample

The rule, fixed before any score was seen. Fields (mosaics, near-duplicates) are found from the images, and a field is
drawn for one part only. The training part takes `MOSAICS` whole four-tile fields, the lightest image with more than
255 nuclei, the fields of the images with the largest and the smallest nuclei among light ones, and the lightest image
of each image size that `COMMON` of all images have. Both parts are then filled at random with single images until
each image type has its share of the full set, and at least its minimum. To stay small, only images whose files are
lighter than `LIGHT` of their type are drawn at random, and PNGs are written anew where that makes them shorter. The
test part's truth goes into stage1_solution.csv in Kaggle's format.

Files weigh what they take in the zip, so that another packing of the same files may give another draw. The bytes that
are written for an image do not depend on it.
"""

import argparse
import csv
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.files import atomic_path
from pipeline.folds.groups import group_images
from pipeline.images.archive import ArchiveImage, index_archive, open_archive, read_entry
from pipeline.images.competition import read_image
from pipeline.images.masks import crop_mask
from pipeline.images.raw import decode_image
from pipeline.images.source import Source
from pipeline.nuclei.rle import encode_label_map
from pipeline.progress import track

SEED = 2018
SIZES = {"train": 57, "test": 16}  # images, before minima and whole fields
MINIMUM = {"train": 2, "test": 0}  # images of each type; a light-background grey one weighs 0.8 MB
MOSAICS = 3
COMMON = 0.01  # share of all images
LIGHT = 0.3  # quantile of the file sizes of a type
PNG_STRATEGIES = (cv2.IMWRITE_PNG_STRATEGY_DEFAULT, cv2.IMWRITE_PNG_STRATEGY_FILTERED)
MAX_PIXELS = 50_000_000


def describe_images(archive: zipfile.ZipFile, entries: list[ArchiveImage]) -> pd.DataFrame:
    """Return a row per image: type, nuclei, median area, bytes of its entries, and its field."""
    source = Source(
        section="data.sources.dsb2018", archive=Path(str(archive.filename)), labels=None, labelled=True,
        allow_unlabelled=False, min_fragment_px=4, max_pixels=MAX_PIXELS, workers=1,
    )  # fmt: skip
    rows, images = [], {}
    for entry in track(entries, "read images"):
        prepared = read_image(archive, entry, source)
        images[entry.image_id] = prepared.image
        names = (entry.image_entry, *entry.mask_entries)
        rows.append({**prepared.row, "bytes": sum(archive.getinfo(name).compress_size for name in names)})
    table = pd.DataFrame(rows).set_index("image_id").sort_index()
    return table.assign(group=group_images(images.items()))


def draw_sample(table: pd.DataFrame, rng: np.random.Generator) -> dict[str, list[str]]:
    """Return the image_ids of the training and of the test part, by the rule of this file."""
    limit = table.groupby("image_type")["bytes"].transform("quantile", LIGHT)
    light = table[table["bytes"] <= limit]
    sizes = light.groupby("group").size()[lambda count: count == 4].index
    whole = [group for group in sizes if (table["group"] == group).sum() == 4]
    fields = list(rng.permutation(whole)[:MOSAICS])
    crowded = table[table["nuclei"] > 255]["bytes"].idxmin()
    fields += [table.loc[i, "group"] for i in (light["median_area_px"].idxmax(), light["median_area_px"].idxmin())]
    shapes = table.groupby(["height", "width"])["bytes"]
    common = shapes.idxmin()[shapes.size() >= COMMON * len(table)]
    chosen = {"train": sorted({*table.index[table["group"].isin(fields)], crowded, *common}), "test": []}
    share = table["image_type"].value_counts(normalize=True)
    for part, count in SIZES.items():
        for image_type in sorted(share.index):
            have = sum(table.loc[i, "image_type"] == image_type for i in chosen[part])
            wanted = max(MINIMUM[part], round(count * share[image_type])) - have
            used = set(table.loc[chosen["train"] + chosen["test"], "group"])
            # One image of a field, so that a random fill brings as many fields as images.
            pool = light[(light["image_type"] == image_type) & ~light["group"].isin(used)]
            pool = pool.loc[rng.permutation(pool.index)].drop_duplicates("group")
            chosen[part] += list(pool.index[: max(0, wanted)])
    return {part: sorted(ids) for part, ids in chosen.items()}


def shorten_png(data: bytes) -> bytes:
    """Return the shortest PNG of the same pixels that zlib's strategies give, or `data` if none is shorter."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    options = [[cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, strategy] for strategy in PNG_STRATEGIES]
    return min([data, *(cv2.imencode(".png", pixels, option)[1].tobytes() for option in options)], key=len)


def write_archive(path: Path, source: zipfile.ZipFile, entries: list[ArchiveImage], with_masks: bool) -> None:
    """Write the entries of a part to a zip, with fixed times and order."""
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as target:
        for entry in entries:
            for name in (entry.image_entry, *(entry.mask_entries if with_masks else ())):
                data = read_entry(source, name, MAX_PIXELS)
                info = zipfile.ZipInfo(name, (2018, 1, 16, 0, 0, 0))
                info.external_attr = 0o644 << 16
                target.writestr(info, shorten_png(data) if name == entry.image_entry else data)


def write_solution(path: Path, source: zipfile.ZipFile, entries: list[ArchiveImage]) -> None:
    """Write the masks as they are, one row each: ImageId,EncodedPixels,Height,Width,Usage."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["ImageId", "EncodedPixels", "Height", "Width", "Usage"])
    for entry in entries:
        for name in entry.mask_entries:
            array = decode_image(read_entry(source, name, MAX_PIXELS), name, MAX_PIXELS)
            mask = crop_mask(array, name)
            full = np.zeros(array.shape[:2], np.uint8)
            height, width = mask.pixels.shape
            full[mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
            writer.writerow([entry.image_id, encode_label_map(full)[0], *array.shape[:2], "Public"])
    with atomic_path(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def main() -> None:
    """Draw the sample and write its three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="stage1_train.zip with masks")
    parser.add_argument("out", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    make_sample(arguments.source, arguments.out)
    for path in sorted(arguments.out.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")


def make_sample(source: Path, out: Path) -> None:
    """Draw the sample from the archive `source`, and write its three files to the folder `out`."""
    with open_archive(source) as archive:
        entries = index_archive(archive, labelled=True, allow_unlabelled=False)
        table = describe_images(archive, entries)
    parts = draw_sample(table, np.random.default_rng(SEED))
    write_sample(source, parts, out)
    for part, ids in parts.items():
        rows = table.loc[ids]
        print(part, len(rows), rows["image_type"].value_counts().to_dict(), f"{rows['nuclei'].sum()} nuclei")


def write_sample(source: Path, parts: Mapping[str, list[str]], out: Path) -> None:
    """Write the images of the parts `train` and `test`, by their ids, and the truth of the second, to `out`."""
    with open_archive(source) as archive:
        entries = {entry.image_id: entry for entry in index_archive(archive, labelled=True, allow_unlabelled=False)}
        train, test = ([entries[image_id] for image_id in parts[part]] for part in ("train", "test"))
        write_archive(out / "stage1_train.zip", archive, train, with_masks=True)
        write_archive(out / "stage1_test.zip", archive, test, with_masks=False)
        write_solution(out / "stage1_solution.csv", archive, test)


if __name__ == "__main__":
    main()
