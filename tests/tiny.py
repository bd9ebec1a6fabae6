"""Parameters so small that a fold trains in a second: those of params.yaml, shrunk."""

from pathlib import Path

from pipeline.params import Params, SourceParams, load_params

ROOT = Path(__file__).resolve().parents[1]


def tiny_source(archive: str, layout: str, labels: str | None = None, **changes: object) -> SourceParams:
    """Return a source that is scored and weighs 1; `changes` are other values of its keys."""
    content = {"archive": archive, "layout": layout, "labels": labels, "scored": True, "weight": 1.0, "licence": None}
    return SourceParams.model_validate(content | changes)


def tiny_params(**changes: object) -> Params:
    """Return tiny parameters; `changes` are values of their own, as `section__name`."""
    content = load_params(ROOT / "params.yaml").model_dump()
    content["unet"] = {
        "name": "vanilla", "depth": 3, "width": 4, "padding": "same", "upsampling": "nearest", "dropout": 0.0,
    }  # fmt: skip
    content["train"] |= {
        "epochs": 2, "steps_per_epoch": 3, "batch": 2, "tile_px": 80, "crop_px": 64, "start_crop_px": 32,
    }  # fmt: skip
    content["runtime"] |= {"device": "cpu", "threads": 1}
    content["housekeeping"] |= {"workers": 1, "score_every_epochs": 1, "score_images": 1}
    content["folds"] |= {"ids": [0, 1], "tries": 2}
    content["predict"] |= {"views": "flips", "tile_px": 128, "overlap_px": 16}
    content["decode"] |= {"seed_threshold": [0.3, 0.5], "boundary_weight": [0.5]}
    # A network that has learnt nothing finds little of worth.
    content["select"] |= {"trees": 20, "min_worth": 0.0}
    content["evaluate"] |= {"bootstrap": 100}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        content[section][name] = value
    return Params.model_validate(content)
