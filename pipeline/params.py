"""The types and bounds of every section of params.yaml, which DVC composes from `pipeline/conf/` and holds all values.

A section is a frozen class; an unknown, missing or out-of-bounds key ends in one `InputError` that names it. Networks,
loss terms and augmentation effects are entries of tables in their rooms, so that one more is one function and one
entry: what such an entry may be told stands beside it, and is checked there, by `pipeline.options`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import InputError
from pipeline.housekeeping import ClusterParams, HousekeepingParams
from pipeline.members import WithMembers
from pipeline.options import (
    Natural,
    NotNegative,
    Numbers,
    OpenShare,
    Positive,
    Section,
    Seed,
    Share,
    Whole,
    explain_fault,
)
from pipeline.yaml_files import read_yaml


class ArchiveParams(Section):
    """An archive, and how images and labels lie in it."""

    archive: Annotated[str, Field(min_length=1)]  # zip, folder or TIFF; a path in data.dir
    layout: str  # an entry of LAYOUTS, `pipeline/images/layouts.py`
    labels: str | None  # a second file in data.dir, where the layout has its labels apart (a stack that is a TIFF)


class SourceParams(ArchiveParams):
    """An archive to learn from."""

    scored: bool  # held out in turn, and scored; false: learnt from in every fold, and scored in none
    weight: Annotated[float, Field(ge=0.001, le=1000)]  # how often an image is drawn, against one of a source of 1
    licence: str | None  # of images and labels; the run card shows it
    ship: bool = True  # false: networks that have learnt from it may not be handed on, and `keep` leaves them out


class DataParams(Section):
    """Which archives are read, and what is made of the faults in them."""

    dir: Annotated[str, Field(pattern=r"^[^'\x00-\x1f\x7f-][^'\x00-\x1f\x7f]*$")]  # of all archives; quoted for a shell
    sources: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], SourceParams], Field(min_length=1)]
    test: ArchiveParams | None  # the images to predict
    test_shares: Annotated[Numbers, Field(min_length=1)]  # they are predicted in so many shares
    solution: str | None  # the test set's truth (CSV); used where the file is there
    allow_unlabelled: bool  # accept training images that have no mask
    min_fragment_px: Whole  # detached fragments of a mask below this many pixels are dropped

    @model_validator(mode="after")
    def _some_are_scored(self) -> "DataParams":
        if not any(source.scored for source in self.sources.values()):
            raise ValueError(f"no source of {', '.join(self.sources)} is scored; set one's `scored` to true")
        return self


class ContrastParams(Section):
    """What the network sees of an image, in training and in prediction alike."""

    stretch: bool  # by the rule of `pipeline/images/contrast.py`
    density: bool  # of a stained image optical densities are shown, their colours paled: nuclei are bright


class FoldsParams(Section):
    """How training images are grouped and spread over folds."""

    groups: Literal["found", "blocks"]  # by borders and likeness, or a block of neighbouring slices for each fold
    ids: Annotated[Numbers, Field(min_length=2)]  # the one place that says how many folds there are
    seed: Seed
    nuclei_bins: Natural  # quantile bins of the nucleus count within an image type, for the strata
    tries: Natural  # seeds to try, from `seed` on; the best balanced folds are kept


class NetworkParams(Section, extra="allow"):
    """The network, an entry of NETWORKS (`pipeline/unet/model.py`); its other keys are that network's own."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _take_none_for_null(cls, values: Any) -> Any:  # as many write it, who know Python better than YAML
        return {k: None if v == "none" else v for k, v in values.items()} if isinstance(values, dict) else values


class TargetsParams(Section):
    """What the network is asked for, per pixel."""

    boundary: Literal["contact", "membrane"]  # where nuclei meet (below), or all that is inside of none
    boundary_px: Natural  # `boundary` is where two nuclei, the own one counted, are at most this far (Chebyshev)
    distance_px: Natural  # the `distance` to the outside of the own nucleus (Euclid), cut and scaled to 1 here


class TermParams(Section, extra="allow"):
    """A term of the loss, an entry of TERMS (`pipeline/unet/losses.py`); its other keys are that term's own."""

    weight: NotNegative  # 0 leaves the term out, and costs nothing


class LossParams(Section):
    """Which terms the loss has, and how pixels and channels weigh in them."""

    terms: dict[str, TermParams]
    channels: tuple[NotNegative, NotNegative]  # weights of foreground and boundary in all terms but `distance`
    weight_map: bool  # weigh pixels of bce by the paper's weight map
    weight_map_w0: NotNegative
    weight_map_sigma_px: Positive


class AugmentParams(Section):
    """Augmentation: by warp and colours on the device, after effects on the CPU; or everything on the CPU."""

    backend: Literal["device", "albumentations"] | None
    effects: dict[str, dict[str, float] | None]  # of EFFECTS (`images/effects.py`) or CPU_EFFECTS; null leaves one out


class TrainParams(Section):
    """One fold's training. An epoch is a number of steps, whatever the number of images."""

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
    compile: bool  # the network, by torch.compile; for CUDA, where it needs a C++ compiler
    balance: Share  # 0 draws all images alike; 1 all image types, and within a type all frame sizes

    @model_validator(mode="after")
    def _tile_covers_crop(self) -> "TrainParams":
        if not (sides := (self.start_crop_px, self.crop_px, self.tile_px)) == tuple(sorted(sides)):
            raise ValueError(f"train.start_crop_px, crop_px and tile_px are {sides}; let none be below the one before")
        return self


class RuntimeParams(Section):
    """Where and how the networks run, in training as in prediction. The environment decides none of it."""

    device: Literal["auto", "cpu", "cuda", "mps"]  # auto: CUDA if there is one, else the CPU; mps is not tested
    threads: Natural  # CPU threads of torch; a parameter, since it decides the last bits of the weights
    precision: Literal["auto", "bf16", "fp16", "fp32"]  # auto: bf16 where native, else fp16 (GPU) or fp32 (CPU)
    channels_last: bool


class SizeParams(Section):
    """The size of nuclei that networks know, and how the size of an image's nuclei is estimated."""

    object_diameter_px: NotNegative  # what the median nucleus is brought to, in training and prediction; 0: native size
    window_px: Natural  # longest side of what the network sees of an image
    images: Natural  # training images that the reader is fitted on
    octaves: Positive  # it is fitted on zooms up to so far to each side of the one trained at
    looks: Annotated[int, Field(ge=2)]  # zooms of each training image that it is fitted on
    steps: Whole  # times the size is read again, at the zoom that was read before
    min_zoom: Positive  # of all zooms that bring nuclei to one size
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

    @model_validator(mode="after")
    def _overlap_below_half(self) -> "PredictParams":
        if 2 * self.overlap_px >= self.tile_px:
            raise ValueError(f"predict.overlap_px is {self.overlap_px}; keep it under half of tile_px {self.tile_px}")
        return self


class DecodeParams(Section):
    """The decodings that `evaluate` searches: probabilities to nuclei by a seeded watershed."""

    seed_threshold: Annotated[tuple[OpenShare, ...], Field(min_length=1)]
    boundary_weight: Annotated[tuple[Share, ...], Field(min_length=1)]
    mask_threshold: Annotated[tuple[OpenShare, ...], Field(min_length=1)]
    min_area_px: Annotated[tuple[Natural, ...], Field(min_length=1)]


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


class Recipe(NamedTuple):
    """The sections that decide the weights of a fold's network."""

    contrast: ContrastParams
    unet: NetworkParams
    targets: TargetsParams
    loss: LossParams
    augment: AugmentParams
    train: TrainParams
    size: SizeParams  # only the diameter that nuclei are brought to, and the bounds of the zooms that do it
    runtime: RuntimeParams

    def describe(self) -> dict[str, Any]:
        """Return every value that decides the weights, as JSON has them."""
        parts = (self.contrast, self.unet, self.targets, self.loss, self.augment, self.train, self.runtime)
        zooms = (self.size.object_diameter_px, self.size.min_zoom, self.size.max_zoom)
        return {type(part).__name__: part.model_dump() for part in parts} | {"zooms": zooms}


class Params(WithMembers):
    """All of params.yaml."""

    data: DataParams
    contrast: ContrastParams
    folds: FoldsParams
    unet: NetworkParams
    targets: TargetsParams
    loss: LossParams
    augment: AugmentParams
    train: TrainParams
    runtime: RuntimeParams
    size: SizeParams
    predict: PredictParams
    decode: DecodeParams
    select: SelectParams
    evaluate: EvaluateParams
    housekeeping: HousekeepingParams
    cluster: ClusterParams

    @property
    def recipe(self) -> Recipe:
        """What a network is trained by."""
        return Recipe(
            self.contrast, self.unet, self.targets, self.loss, self.augment, self.train, self.size, self.runtime
        )


def load_params(path: Path, member: str | None = None) -> Params:
    """Read and check params.yaml, and return its parameters, or those of a member.

    Raises:
        InputError: the file is missing, is no YAML mapping, a key is unknown, missing or out of bounds, or there is no
            such member.
    """
    try:
        params = Params.model_validate(read_yaml(path))
        return params.of_member(member) if member else params
    except ValidationError as error:
        raise InputError(f"{path}: {explain_fault(error, '')}; `pipeline/params.py` lists all keys") from error
