"""A small checkout to break things in: the repository's own code and dvc.yaml, eleven images and a tiny network."""

import hashlib
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline.images.archive import index_archive, open_archive

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "sample"
COPIED = (
    "pipeline", "Makefile", "dvc.yaml", "params.yaml", ".dvc/config", ".dvcignore", ".gitignore", "folds/unseen.csv",
    "folds/known.csv",
)  # fmt: skip

# What must come out the same, bit for bit, whatever happened on the way.
RESULTS = (
    "data/prepared/train/images.npz", "data/prepared/test/images.npz", "folds/folds.csv",
    "folds/weights/main/0.safetensors", "folds/weights/main/1.safetensors", "folds/history/main/0.csv",
    "folds/history/main/1.csv", "folds/sizes/main/0.safetensors", "folds/sizes/main/1.safetensors",
    "folds/oof/main/0.npz", "folds/oof/main/1.npz", "folds/candidates.npz", "folds/trees.npz", "folds/oof.csv",
    "folds/signals.csv", "folds/scores.csv", "folds/cv.json", "submissions/probabilities/main/0.npz",
    "submissions/probabilities/main/1.npz", "submissions/submission.csv", "submissions/expected.csv",
    "submissions/run.json", "submissions/report.html",
)  # fmt: skip


def make_archives(folder: Path, train: int = 8, test: int = 3) -> None:
    """Write the smallest images of the embedded sample, with the solution of its test part, to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("stage1_train.zip", train), ("stage1_test.zip", test)):
        with open_archive(SAMPLE / name) as source, zipfile.ZipFile(folder / name, "w") as target:
            entries = index_archive(source, "train" in name, True)
            entries = sorted(entries, key=lambda entry: source.getinfo(entry.image_entry).file_size)[:count]
            for entry in entries:
                for member in (entry.image_entry, *entry.mask_entries):
                    target.writestr(member, source.read(member))
    solution = pd.read_csv(SAMPLE / "stage1_solution.csv")
    solution[solution["ImageId"].isin([entry.image_id for entry in entries])].to_csv(
        folder / "stage1_solution.csv", index=False
    )


def make_params() -> dict[str, Any]:
    """Return params.yaml's content, shrunk until a fold trains for some seconds and saves every half of one."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["unet"] = {
        "name": "vanilla", "depth": 3, "width": 4, "padding": "same", "upsampling": "nearest", "dropout": 0.1,
    }  # fmt: skip
    content["train"] |= {
        "epochs": 6, "steps_per_epoch": 15, "batch": 4, "tile_px": 80, "crop_px": 64, "start_crop_px": 32,
    }  # fmt: skip
    content["runtime"] |= {"device": "cpu", "threads": 1}
    content["housekeeping"] |= {"workers": 2, "score_every_epochs": 0, "checkpoint_every_s": 0.5}
    content["cluster"] |= {"cpus": 1, "memory_gib": 0.1, "rest_s": 5.0}
    content["folds"] |= {"ids": [0, 1], "tries": 2}
    content["data"]["test_shares"] = [0, 1]
    content["predict"] |= {"views": "flips", "tile_px": 128, "overlap_px": 16}
    content["decode"] |= {"seed_threshold": [0.3, 0.5], "boundary_weight": [0.5]}
    content["select"] |= {"trees": 20, "min_worth": 0.0}
    content["evaluate"] |= {"bootstrap": 100}
    return content


def make_workspace(folder: Path) -> Path:
    """Make a checkout in `folder`, with a git repository of its own, and return it."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    make_archives(folder / "data" / "sample")
    write_params(folder, make_params())
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def write_params(folder: Path, content: dict[str, Any]) -> None:
    """Write params.yaml of a checkout."""
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def clear_results(folder: Path) -> None:
    """Remove all that a run made, DVC's cache and records too, so that the next one starts anew."""
    made = [path for path in (folder / "folds").glob("*") if path.name not in ("unseen.csv", "known.csv")]
    names = ("data/prepared", "submissions", ".resume", ".dvc/cache", ".dvc/tmp", "dvc.lock")
    for path in [*made, *(folder / name for name in names)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def digest_results(folder: Path, names: Iterable[str] = RESULTS) -> dict[str, str]:
    """Return the SHA-256 of each result; `missing` where it is not there."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() if (folder / name).is_file() else "missing"
        for name in names
    }


def stage_command(folder: Path, stage: str, fold: int = 0) -> list[str]:
    """Return the plain command of a stage, as dvc.yaml has it."""
    words = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"][stage]["cmd"]
    values = {"${data.dir}": "data/sample", "${item.fold}": str(fold), "${item.share}": "0", "${item.member}": "main"}
    for key, value in values.items():
        words = words.replace(key, value)
    return [sys.executable, *shlex.split(words)[1:]]


def find_leftovers(folder: Path) -> list[Path]:
    """Return what is half-written: temporary files and folders."""
    return [path for path in folder.rglob("*.partial") if ".dvc" not in path.parts]
