"""Prediction, the same for held-out folds and the test set: images and networks in, probabilities out.

In: uint8 RGB images of any size. Out: uint8 probabilities (value / 255) of foreground, boundary and distance, the mean
over networks and views, for each zoom: the image's own times each of `predict.scales`. An image goes through as
overlapping tiles, one row of tiles at a time; a row of the image is rounded to uint8 as soon as no further tile reaches
it, so that memory grows with an image's sides and not with its area, its own output aside. `predict_strips` has no such
output: it hands an image on from the top, the zooms averaged already.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.params import PredictParams
from pipeline.unet.ensemble import Ensemble
from pipeline.unet.model import OUT_CHANNELS, NormalizedUNet
from pipeline.unet.prediction import Prediction, Windows, average
from pipeline.unet.runtime import Runtime
from pipeline.unet.tiling import AxisTiles, Indices, plan_axis
from pipeline.unet.views import views_of

Image = NDArray[np.uint8]
# (image_id, image) -> output px per px at which the networks look at it.
FindZoom = Callable[[str, Image], float]
# Is told how many images more are done, which may be a part of one.
Advance = Callable[[float], None]

# Images are read this many batches ahead, so that those of one shape meet.
_CHUNK_BATCHES = 4
# Of a strongly reduced image a tile spans many pixels. It is made smaller where it would span more than so many times
# its usual side, and fewer go together where they would span more than so many times a batch's area.
_MOST_REACH, _MOST_AREA = 4, 8


def predict_probabilities(
    models: Sequence[NormalizedUNet],
    image: Image,
    params: PredictParams,
    runtime: Runtime,
) -> Image:
    """Return the probabilities (S, H, W, 3) uint8 of one `image` (H, W, 3) uint8 RGB; see `predict_images`."""
    return next(predict_images(models, [("image", image)], params, runtime)).probabilities


def predict_images(
    models: Sequence[NormalizedUNet],
    images: Iterable[tuple[str, Image]],
    params: PredictParams,
    runtime: Runtime,
    find_zoom: FindZoom | None = None,
    advance: Advance | None = None,
) -> Iterator[Prediction]:
    """Yield predictions of `images` (H, W, 3) uint8 RGB, in their order.

    Channels: foreground, boundary, distance. Images of one shape and zoom that come near one another share batches.

    Args:
        models: networks to average; they are moved to where they run and set to `eval`.
        images: image_id and image; read as they are needed.
        params: the section `predict`.
        runtime: where the networks run, and how.
        find_zoom: says at which zoom an image is seen, before `params.scales`; None for its own size.
        advance: is told after every row of tiles which part of the images that was, in all the number of images.

    Raises:
        InputError: no network, networks that take different lengths, or an image of another shape or type.
    """
    ensemble = Ensemble(models, views_of(params.views), runtime)
    for chunk in _read_chunks(images, _CHUNK_BATCHES * params.batch * params.tile_px**2):
        alike: dict[tuple[tuple[int, ...], float], list[int]] = {}
        for position, (image_id, image) in enumerate(chunk):
            zoom = find_zoom(image_id, image) if find_zoom else 1.0
            alike.setdefault((image.shape, zoom), []).append(position)
        predicted: dict[int, tuple[Image, float]] = {}
        for (_, zoom), positions in alike.items():
            stack = predict_stack(ensemble, [chunk[position][1] for position in positions], params, zoom, advance)
            predicted.update((position, (part, zoom)) for position, part in zip(positions, stack, strict=True))
        names = [image_id for image_id, _ in chunk]
        # A large image and its probabilities are let go before anyone works on what comes of them.
        chunk.clear()
        del image, stack
        for position, image_id in enumerate(names):
            yield Prediction(image_id, *predicted.pop(position))


@torch.inference_mode()
def predict_stack(
    ensemble: Ensemble,
    images: Sequence[Image],
    params: PredictParams,
    zoom: float = 1.0,
    advance: Advance | None = None,
) -> Image:
    """Return the probabilities (N, S, H, W, 3) uint8 of N `images` (H, W, 3) uint8 RGB of one shape, seen at `zoom`.

    `advance` is told after every row of tiles which part of the images that was: in all, N.
    """
    height, width = images[0].shape[:2]
    output = np.empty((len(images), len(params.scales), height, width, OUT_CHANNELS), np.uint8)
    for number, scale in enumerate(params.scales):
        top = 0
        for rows in _predict_rows(ensemble, images, zoom * scale, params):
            band = slice(top, top + rows.shape[1])
            output[:, number, band] = rows
            top = band.stop
            if advance is not None:
                advance(len(images) * rows.shape[1] / height / len(params.scales))
    return output


class Look(NamedTuple):
    """How some networks see an image.

    Attributes:
        ensemble: the networks.
        image: (H, W, 3) uint8 RGB, as they are shown it.
        params: the section `predict`.
        zoom: at which they see it, before `params.scales`.
        weight: how often what they say counts, beside other looks, at each of as many scales.
    """

    ensemble: Ensemble
    image: Windows
    params: PredictParams
    zoom: float = 1.0
    weight: int = 1


def predict_strips(looks: Sequence[Look]) -> Iterator[Image]:
    """Yield the probabilities of an image, looked at in some ways, as strips (rows, W, 3) from the top.

    They are uint8, already the mean over `params.scales` and looks; of one look they are what `average_zooms` makes of
    `predict_stack`, to the byte. Held are only the rows that some scales have and others have not yet, and one row of
    tiles of one scale.
    """
    seen = [(look, look.zoom * scale) for look in looks for scale in look.params.scales]
    sources = [_predict_rows(look.ensemble, [look.image], zoom, look.params) for look, zoom in seen]
    weights = [look.weight for look, _ in seen]
    waiting: list[list[Image]] = [[] for _ in sources]
    done = 0
    while done < looks[0].image.shape[0]:
        for source, parts in zip(sources, waiting, strict=True):
            if not parts:
                # The networks run here only: whoever takes the strips does not work in this mode.
                with torch.inference_mode():
                    parts.append(next(source)[0])
        ready = min(len(parts[0]) for parts in waiting)
        yield average([parts[0][:ready] for parts in waiting], weights)
        done += ready
        for parts in waiting:
            rest = parts.pop()[ready:]
            if len(rest):
                parts.append(rest)


def _predict_rows(ensemble: Ensemble, images: Sequence[Windows], zoom: float, params: PredictParams) -> Iterator[Image]:
    """Yield the images' probabilities at one zoom, as bands (N, rows, W, 3) uint8 from the top down.

    The sum over tiles is kept for the rows of one row of tiles; rows above the next one are complete, and leave. While
    the caller works on them only the others are held: those where two rows of tiles overlap.
    """
    tile_px = max(round(params.tile_px * min(1, _MOST_REACH * zoom)), 2 * params.overlap_px + 1)
    rows, columns = (
        plan_axis(length, zoom, tile_px, params.overlap_px, ensemble.lengths) for length in images[0].shape[:2]
    )
    tiles = list(product(range(len(images)), range(len(columns.firsts))))
    fed_px = rows.fed_px * columns.fed_px * len(ensemble.views)
    source_px = rows.sources.shape[1] * columns.sources.shape[1]
    per_batch = max(1, params.batch * params.tile_px**2 // max(fed_px, source_px // _MOST_AREA))
    ends = [*rows.firsts[1:], images[0].shape[0]]
    rest = torch.zeros(len(images), OUT_CHANNELS, 0, images[0].shape[1], device=ensemble.device)
    for row, (first, end) in enumerate(zip(rows.firsts, ends, strict=True)):
        band = torch.zeros(len(images), OUT_CHANNELS, rows.target_px, images[0].shape[1], device=ensemble.device)
        band[:, :, : rest.shape[2]] = rest
        for begin in range(0, len(tiles), per_batch):
            batch = tiles[begin : begin + per_batch]
            weighted = _predict_tiles(ensemble, images, rows, columns, row, batch)
            for (image, column), tile in zip(batch, weighted, strict=True):
                left = columns.firsts[column]
                band[image, :, :, left : left + columns.target_px] += tile
            del weighted, tile
        complete = end - first
        rest = band[:, :, complete:].clone()
        whole = band[:, :, :complete].mul_(255).round_().to(torch.uint8)
        del band
        yield whole.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        del whole


def _predict_tiles(
    ensemble: Ensemble,
    images: Sequence[Windows],
    rows: AxisTiles,
    columns: AxisTiles,
    row: int,
    batch: Sequence[tuple[int, int]],
) -> Tensor:
    """Return probabilities times blending weights (B, 3, target rows, target columns) of tiles (image, column)."""
    patches = np.stack([_cut(images[image], rows.sources[row], columns.sources[column]) for image, column in batch])
    x = torch.from_numpy(patches).to(ensemble.device).permute(0, 3, 1, 2)
    which = [column for _, column in batch]
    if isinstance(rows.write, Tensor) or isinstance(columns.write, Tensor):
        probabilities = ensemble.predict(x.float().div_(255))[:, :, rows.kept, columns.kept]
        write_columns = columns.write[which].to(ensemble.device)
        return probabilities * rows.write[row].to(ensemble.device)[:, None] * write_columns[:, None, None]
    assert rows.read is not None  # where tiles are resampled on the way back, they are on the way there
    assert columns.read is not None
    x = columns.read.apply_to_columns(which, rows.read.apply_to_rows(row, x.contiguous().float().div_(255)))
    probabilities = ensemble.predict(x)
    return columns.write.apply_to_columns(which, rows.write.apply_to_rows(row, probabilities))


def _cut(image: Windows, rows: Indices, columns: Indices) -> Image:
    """Return a window (len(rows), len(columns), 3) of an image; pixel by pixel only where one is mirrored into it."""
    runs = [slice(int(each[0]), int(each[-1]) + 1) for each in (rows, columns)]
    is_mirrored = any(run.stop - run.start < len(each) for run, each in zip(runs, (rows, columns), strict=True))
    window: Image = image[np.ix_(rows, columns) if is_mirrored else tuple(runs)]
    return window


def _read_chunks(images: Iterable[tuple[str, Image]], pixels: int) -> Iterator[list[tuple[str, Image]]]:
    """Yield neighbours in lists of at most `pixels` pixels together, a larger image alone."""
    chunk: list[tuple[str, Image]] = []
    held = 0
    for image_id, image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
            raise InputError(f"{image_id}: {image.dtype} {image.shape}; prediction takes uint8 RGB (H, W, 3)")
        area = image.shape[0] * image.shape[1]
        if chunk and held + area > pixels:
            yield chunk
            chunk, held = [], 0
        chunk.append((image_id, image))
        held += area
        del image
        if held >= pixels:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
