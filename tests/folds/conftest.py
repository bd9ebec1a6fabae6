"""Prepared splits made on the spot: images of bright discs, and nuclei where they are."""

import numpy as np
import pandas as pd
import pytest

from pipeline.images.source import describe_image
from pipeline.images.store import PackWriter
from pipeline.images.table import TABLE_COLUMNS


def draw_discs(seed, height=96, width=104):
    """Return an image (H, W, 3) uint8 of discs that do not touch, and their label map (H, W) uint16."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    label_map = np.zeros((height, width), np.uint16)
    for row in range(16, height - 15, 32):
        for column in range(16, width - 15, 32):
            radius = rng.uniform(6, 11)
            label_map[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = label_map.max() + 1
    grey = np.where(label_map > 0, rng.integers(120, 200), 20) + rng.integers(0, 20, label_map.shape)
    return grey.astype(np.uint8)[..., None].repeat(3, axis=2), label_map


@pytest.fixture
def make_split(tmp_path):
    """Return a function that writes a prepared split of discs, and returns its folder.

    Images whose ids are in `absent` have their row in the table, but are not in the pack; those in `unscored` are of a
    source that is not scored.
    """

    def make(image_ids, absent=(), unscored=(), folder=tmp_path / "prepared"):
        folder.mkdir(parents=True)
        rows = []
        with PackWriter(folder / "images.npz") as pack:
            for seed, image_id in enumerate(image_ids):
                image, label_map = draw_discs(seed)
                rows.append(
                    describe_image(image_id, image, label_map, []).row
                    | {"source": "made", "scored": int(image_id not in unscored), "weight": 1.0}
                )
                if image_id not in absent:
                    pack.add(f"{image_id}.image", image)
                    pack.add(f"{image_id}.label_map", label_map)
        pd.DataFrame(rows)[list(TABLE_COLUMNS)].to_csv(folder / "table.csv", index=False)
        return folder

    return make


@pytest.fixture
def make_folds(tmp_path):
    """Return a function that writes the fold table of {image_id: (group, fold)}, and returns its path."""

    def make(places):
        rows = [(image_id, group, "s", fold) for image_id, (group, fold) in places.items()]
        path = tmp_path / "folds.csv"
        pd.DataFrame(rows, columns=["image_id", "group", "stratum", "fold"]).to_csv(path, index=False)
        return path

    return make
