"""A fold's size reader, from the images that its network learnt from: what the stage and the studies call.

In: a network and labelled images. Out: what reads sizes off the network's features. Some of the images are enough.
"""

from pipeline.images.augment import build_recolour
from pipeline.images.contrast import show_images
from pipeline.images.splits import PreparedSplit, spread
from pipeline.params import AugmentParams, ContrastParams, SizeParams
from pipeline.progress import track
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.runtime import Runtime
from pipeline.unet.size import SizeReader, fit_reader


def learn_sizes(
    model: NormalizedUNet,
    learnt: PreparedSplit,
    contrast: ContrastParams,
    augment: AugmentParams,
    size: SizeParams,
    runtime: Runtime,
    title: str,
) -> SizeReader:
    """Fit a reader to `size.images` of the images that have nuclei, evenly spread, as they are and recoloured.

    Args:
        model: in `eval` mode, on the device of `runtime`.
        learnt: what it learnt from.
        contrast: how images are shown to networks.
        augment: how they are recoloured.
        size: how many images are looked at, and how.
        runtime: where the network runs, and how.
        title: of the progress bar.

    Raises:
        InputError: no image has a nucleus.
    """
    names = learnt.table.loc[learnt.diameters_px > 0, "image_id"]
    images = learnt.select(names.iloc[spread(len(names), size.images)])
    shown = show_images(images.images(), contrast)
    pairs = ((image, float(px)) for (_, image), px in zip(shown, images.diameters_px, strict=True))
    recolour = build_recolour(augment, runtime.device)
    return fit_reader(model, track(pairs, title, len(images)), size, runtime, recolour)
