"""Which images belong together: tiles of one larger field, and near-duplicates, found from the pixels alone.

In: images, one at a time. Out: a group per image. Of every image only its borders and a thumbnail are kept, and every
search goes through a k-d tree, so that neither memory nor time grows with the square of the number of images.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pipeline.folds.seams import Floats, Indices, cut_pairs, find_pairs, normalise

_THUMBNAIL_PX = 32
_SAME_CORRELATION = 0.9  # of two thumbnails; in stage1_train one pair of 664 has 0.99, all others are below 0.8
_SHORTEST_BORDER_PX = 32  # shorter borders correlate by chance


class Sketch(NamedTuple):
    """What is kept of an image."""

    shape: tuple[int, ...]
    digest: bytes
    thumbnail: Floats  # (1024,), zero mean, norm 1 (all 0 for an image without structure)
    borders: dict[str, NDArray[np.uint8]]  # right, left, bottom, top: (2, length, channels), outermost line first


def group_images(images: Iterable[tuple[str, NDArray[np.uint8]]]) -> pd.Series:
    """Return each image's group: the smallest image_id among the images it is tied to.

    Args:
        images: pairs of image_id and image, uint8 (H, W) or (H, W, C), read once, in any order.

    Returns:
        Strings named `group`, indexed by image_id, sorted. An image that is tied to no other is a group of its own.
    """
    sketches = {image_id: sketch_image(image) for image_id, image in images}
    image_ids = sorted(sketches)
    ordered = [sketches[image_id] for image_id in image_ids]
    copies = find_duplicates(ordered)
    twins = _components(len(ordered), copies)
    # One of a set of copies is enough to find seams by, but one of each shape: the tiles of a field have one shape.
    first_of: dict[tuple[int, tuple[int, ...]], int] = {}
    for i, sketch in enumerate(ordered):
        first_of.setdefault((int(twins[i]), sketch.shape), i)
    originals = np.array(list(first_of.values()), dtype=int)
    ties = originals[find_seams([ordered[i] for i in originals])]
    labels = _components(len(ordered), np.concatenate([copies, ties]))
    names = np.array(image_ids, dtype=object)
    first = np.unique(labels, return_index=True)[1]  # the first of the sorted ids is the smallest
    return pd.Series(names[first[labels]], index=pd.Index(image_ids, name="image_id"), name="group", dtype=object)


def sketch_image(image: NDArray[np.uint8]) -> Sketch:
    """Keep the digest, a thumbnail and the borders of `image`, uint8 (H, W) or (H, W, C)."""
    image = np.atleast_3d(image)
    small = cv2.resize(image, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    grey = np.sqrt(small.reshape(_THUMBNAIL_PX**2, -1).astype(np.float32).mean(axis=1))
    inner = [min(1, length - 1) for length in image.shape[:2]]
    borders = {
        "right": image[:, [-1, -1 - inner[1]]].swapaxes(0, 1),
        "left": image[:, [0, inner[1]]].swapaxes(0, 1),
        "bottom": image[[-1, -1 - inner[0]]],
        "top": image[[0, inner[0]]],
    }
    digest = hashlib.blake2b(image.tobytes() + repr(image.shape).encode(), digest_size=16).digest()
    return Sketch(image.shape, digest, normalise(grey[None])[0], borders)


def find_duplicates(sketches: list[Sketch]) -> Indices:
    """Return pairs of positions, (n, 2), whose images are equal or show almost the same picture.

    The pairs link copies together; they do not list every pair of a set of copies.
    """
    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(sketch.digest, i), i) for i, sketch in enumerate(sketches)]
    distinct = np.array([i for original, i in pairs if original == i and sketches[i].thumbnail.any()], dtype=int)
    if len(distinct) < 2:
        return np.array(pairs, dtype=int).reshape(-1, 2)
    thumbnails = np.stack([sketches[i].thumbnail for i in distinct])
    block = _THUMBNAIL_PX // 8
    blocks = thumbnails.reshape(len(distinct), 8, block, 8, block)
    # Summed like this the blocks are an orthogonal projection: no pair that is near is farther here.
    coarse = blocks.sum(axis=(2, 4)).reshape(len(distinct), -1) / block
    radius = np.sqrt(2 - 2 * _SAME_CORRELATION)
    near = cKDTree(coarse).query_pairs(radius, output_type="ndarray")
    correlation = np.concatenate(
        [np.einsum("nd,nd->n", thumbnails[part[:, 0]], thumbnails[part[:, 1]]) for part in cut_pairs(near)]
    )
    return np.concatenate([np.array(pairs, dtype=int), distinct[near[correlation >= _SAME_CORRELATION]]])


def find_seams(sketches: list[Sketch]) -> Indices:
    """Return pairs of positions, (n, 2), of images that lie side by side in one field.

    Only images of one shape are compared: the tiles of a field are cut alike.
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, sketch in enumerate(sketches):
        if min(sketch.shape[:2]) >= _SHORTEST_BORDER_PX:
            by_shape[sketch.shape].append(i)
    found = [np.empty((0, 2), dtype=int)]
    for members in by_shape.values():
        tiles = [sketches[i] for i in members]
        sides = (_borders(tiles, side) for side in ("right", "left", "bottom", "top"))
        found.append(np.array(members)[find_pairs(*sides)])
    return np.concatenate(found)


def _borders(tiles: list[Sketch], side: str) -> Floats:
    """Return the square roots of one side's borders, (N, 2, L, C): they even out photon noise."""
    return np.sqrt(np.stack([tile.borders[side] for tile in tiles]).astype(np.float32))


def _components(count: int, pairs: Indices) -> Indices:
    """Return the connected component, 0, 1, ..., of each of `count` positions that `pairs` (n, 2) tie."""
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]
