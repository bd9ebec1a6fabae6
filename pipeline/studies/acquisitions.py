"""Acquisitions found from the images alone: clusters of images that one microscope, stain and frame size made.

`python -m pipeline.studies.acquisitions [--data DIR]` writes results/acquisitions.csv, a row per image of the full
data: its cluster, and the clusters that it looks like. `pipeline.studies.unseen` leaves each cluster out of training
with all that looks like it. No label is used.

The rule. Images on a light background are clusters by their type, and both types of stained images look like one
another: where stained tissue is unseen, training has seen none. Images on a dark background are clustered by Ward's
method on what `describe_image` says of them, frame size included, into as many clusters as were told apart by eye. A
dark image looks like a cluster if it lies, by all but the frame size, within the radius around the cluster's centre
that holds nine tenths of its own images. The likeness has a direction: the images of a narrow cluster may all lie
within a wide one, which `pipeline.studies.unseen` then leaves out with it.
"""

from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering

from pipeline.errors import InputError, one_line_errors
from pipeline.images.image_type import STAINED_TYPES
from pipeline.images.splits import PreparedSplit
from pipeline.studies.study import RESULTS, compose, keep_table, load_data, make_data_parser

TABLE = RESULTS / "acquisitions.csv"
_DARK = ("fluorescence", "colour_on_dark")
_DARK_CLUSTERS = 10
_OWN_SHARE = 0.9  # of a cluster's own images lie within the radius of what looks like it
_SIGMAS_PX = (1, 2, 4, 8)  # of the bands of detail


def describe_image(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (7,): of the luminance of an image (H, W, 3) uint8 the mean and deviation as logarithms, the share of four
    bands of detail in it as logarithms, and the logarithm of the frame's area.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    blurred = [grey, *(cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in _SIGMAS_PX)]
    bands = [float(np.std(fine - coarse)) for fine, coarse in pairwise(blurred)]
    spread = float(grey.std()) + 1
    shares = [np.log(band / spread + 0.01) for band in bands]
    return np.array([np.log(grey.mean() + 2), np.log(spread), *shares, np.log(grey.size)])


def find_acquisitions(split: PreparedSplit) -> pd.DataFrame:
    """Return image_id, cluster and looks_like (names of clusters, one after another with a blank between)."""
    table = split.table[["image_id", "image_type"]].copy()
    dark = table["image_type"].isin(_DARK).to_numpy()
    table["cluster"], table["looks_like"] = table["image_type"], ""
    for image_type, other in (STAINED_TYPES, STAINED_TYPES[::-1]):
        table.loc[table["image_type"] == image_type, "looks_like"] = other
    looks = np.array([describe_image(split.image(name)) for name in table["image_id"][dark]])
    looks = (looks - looks.mean(axis=0)) / np.maximum(looks.std(axis=0), 1e-9)  # all of one frame have no deviation
    labels = AgglomerativeClustering(_DARK_CLUSTERS).fit_predict(looks)
    names = table["image_id"][dark].to_numpy()
    order = sorted(set(labels), key=lambda label: (-(labels == label).sum(), names[labels == label][0]))
    table.loc[dark, "cluster"] = [f"dark{order.index(label)}" for label in labels]
    appearance = looks[:, :-1]
    similar: list[list[str]] = [[] for _ in names]
    for number, label in enumerate(order):
        own = labels == label
        distance = np.linalg.norm(appearance - appearance[own].mean(axis=0), axis=1)
        for index in np.flatnonzero(~own & (distance <= np.quantile(distance[own], _OWN_SHARE))):
            similar[index].append(f"dark{number}")
    table.loc[dark, "looks_like"] = [" ".join(each) for each in similar]
    return table[["image_id", "cluster", "looks_like"]]


def read_acquisitions() -> pd.DataFrame:
    """Return the table of `find_acquisitions` that was kept.

    Raises:
        InputError: there is none.
    """
    if not TABLE.is_file():
        raise InputError(f"{TABLE}: no such file; `python -m pipeline.studies.acquisitions` writes it")
    return pd.read_csv(TABLE, dtype=str, keep_default_na=False)


def main() -> None:
    arguments = make_data_parser(__doc__ or "").parse_args()
    split = load_data(arguments.data, arguments.scratch, compose("unseen")).split
    table = find_acquisitions(split)
    keep_table(TABLE, table)
    shown = table.merge(split.table[["image_id", "height", "width"]], on="image_id")
    for cluster, images in shown.groupby("cluster"):
        frames = (images["height"].astype(str) + "x" + images["width"].astype(str)).value_counts()
        similar = table["looks_like"].str.split().apply(lambda names, cluster=cluster: cluster in names).sum()
        print(f"{cluster}: {len(images)} images, {similar} that look like it;", frames.to_dict())


if __name__ == "__main__":
    with one_line_errors():
        main()
