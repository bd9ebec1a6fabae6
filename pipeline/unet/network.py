"""What a network has to be, so that building, describing, training and reading sizes name no class of it.

A new network is a file with a subclass and the section of its parameters, an entry of NETWORKS in `model`, and a file
of values in `pipeline/conf/unet`.
"""

from torch import Tensor, nn

from pipeline.unet.blocks import LengthRule

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]

# The mean and standard deviation of ImageNet's pixels, in [0, 1]: torchvision's and most encoders' normalisation.
IMAGENET_MEAN_STD: MeanStd = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Where the encoder's weights come from, where they come from nowhere.
NO_WEIGHTS = {"source": "none", "file": "", "sha256": ""}


class Network(nn.Module):
    """A network that takes normalised images (B, C, H, W) and returns logits per pixel; one random draw builds it.

    Attributes:
        lengths: the heights and widths that it takes, and what its output lacks.
        title: what it is, in a few words.
        stages: patterns of its modules' names, and the name of the stage that such a module belongs to, with `{}` for
            the pattern's number, counted from 1; `encoder` without one is split where the resolution changes.
        mean_std: per channel, of images in [0, 1]: the normalisation that it expects.
    """

    lengths: LengthRule
    title: str
    stages: tuple[tuple[str, str], ...]
    mean_std: MeanStd = IMAGENET_MEAN_STD

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's maps (B, C, h, w) of `x` (B, C, H, W), the finest first, the two deepest at the end."""
        raise NotImplementedError

    def load_pretrained(self) -> dict[str, str]:
        """Fill the encoder with pretrained weights where asked for; return their `source`, `file` and `sha256`.

        Raises:
            InputError: the weights cannot be had, or are of another encoder.
        """
        return dict(NO_WEIGHTS)
