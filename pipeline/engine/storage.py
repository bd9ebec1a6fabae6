"""A folder that all machines of a cluster see: what folds or shares need is laid out there, results come back.

In: a checkout in which the inputs of the work are up to date. Out: a folder for each set of inputs, named by a digest
of them, in which any machine can run any item (`chain.py`); and back in the checkout the results, of which DVC is
told.
"""

import operator
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

from pipeline.engine.chain import ENVIRONMENT, is_done, read_chain
from pipeline.engine.checkout import dvc_command, dvc_environment
from pipeline.engine.work import Work
from pipeline.errors import InputError
from pipeline.files import atomic_folder, atomic_path, hold, sha256_of, write_json
from pipeline.params import load_params
from pipeline.provenance import describe_environment, digest_code, fingerprint
from pipeline.yaml_files import read_yaml

_STAGES, _PARAMS, _JOURNAL = Path("dvc.yaml"), Path("params.yaml"), Path(".resume/journal")
_LAY_OUT_S = 3600.0  # in which another run copies its images


def name_folder(storage: Path, work: Work) -> Path:
    """Return what the folder of `storage` for the inputs of this checkout is called; it need not be there."""
    tops, stages = (*work.inputs, *_find_weights()), read_yaml(_STAGES)["stages"]
    found = [path for top in tops for path in (sorted(top.rglob("*")) if top.is_dir() else [top])]
    files = [path for path in found if not path.is_dir()]
    parts = {
        "files": [(path.as_posix(), sha256_of(path)) for path in files],
        "params": _read_params(work),
        "stages": {name: [stages[name][key] for key in ("cmd", "outs")] for name in work.stages},
        "code": [digest_code(f"pipeline.stages.{stage}") for stage in work.stages],
        "environment": describe_environment(),
    }
    return storage.resolve() / fingerprint(parts)


def lay_out(storage: Path, work: Work) -> Path:
    """Return the folder of `storage`, which all machines see, for the work of this checkout; made if missing.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = name_folder(storage, work)
    with hold(folder.with_suffix(".lock"), "another run lays the same out", _LAY_OUT_S):
        if not folder.is_dir():
            with atomic_folder(folder) as partial:
                for path in (*work.inputs, *_find_weights()):
                    (partial / path).parent.mkdir(parents=True, exist_ok=True)
                    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, partial / path)
                write_json(partial / ENVIRONMENT, describe_environment())
        # What changes no result changes no name: `housekeeping`, and the code that starts stages, are as they are here.
        package = Path(__file__).resolve().parents[1]
        for path in sorted(path for path in package.rglob("*") if path.is_file() and path.parent.name != "__pycache__"):
            _copy_changed(path, folder / package.name / path.relative_to(package))
        for path in (_STAGES, _PARAMS):
            _copy_changed(path, folder / path)
    return folder


def _copy_changed(path: Path, copy: Path) -> None:
    content = path.read_bytes()
    if not copy.is_file() or copy.read_bytes() != content:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(copy) as partial:
            partial.write_bytes(content)


def _find_weights() -> list[Path]:
    """Return the files of weights that params.yaml names by a relative path, of any member."""
    networks = [member.unet.model_extra or {} for member in load_params(_PARAMS).of_members.values()]
    named = sorted({str(network["weights_file"]) for network in networks if network.get("weights_file")})
    return [Path(name) for name in named if not Path(name).is_absolute() and Path(name).is_file()]


def _read_params(work: Work) -> dict[str, Any]:
    """Return the parameters that the stages read, as dvc.yaml lists them, by their keys."""
    stages, params = read_yaml(_STAGES)["stages"], read_yaml(_PARAMS)
    keys = {key for stage in work.stages for key in stages[stage]["params"]} - {"members.${item.member}"}
    members = {name: params["members"][name] for name in params["member_ids"]}
    return {key: reduce(operator.getitem, key.split("."), params) for key in sorted(keys)} | {"members": members}


def lend(folder: Path, work: Work, items: Iterable[str], stale: Mapping[str, Sequence[str]]) -> None:
    """Copy to `folder` what it lacks and this checkout has: results of stages before an item's first stale one.

    Args:
        folder: of `lay_out`.
        work: its kind of work.
        items: the folds or shares.
        stale: the stages that DVC would run, of `find_stale`.
    """
    for item in items:
        for stage in read_chain(folder, work, item):
            if stage.name in stale.get(item, ()):
                break
            if is_done(folder, stage):
                continue
            for out in stage.outs:
                _copy_changed(out, folder / out)
            write_json(folder / stage.marker, {str(out): sha256_of(folder / out) for out in stage.outs})


@contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Be the one run that hands out the work of `folder`.

    Raises:
        InputError: another is.
    """
    with hold(folder / "driver.lock", "another run hands out this work; wait for it, or stop it", 0.0):
        yield


def list_unfinished(folder: Path, work: Work, items: Iterable[str]) -> list[str]:
    """Return the items of which a stage is not done, or its result was damaged since."""
    return [each for each in items if not all(is_done(folder, stage) for stage in read_chain(folder, work, each))]


def adopt(folder: Path, work: Work, items: Sequence[str]) -> None:
    """Bring the results of finished items into this checkout, and tell DVC that they are of its inputs.

    Raises:
        InputError: DVC does not take them, or this checkout's inputs have changed since they were laid out.
    """
    if not items:
        return
    if name_folder(folder.parent, work) != folder:
        raise InputError(
            f"parameters, code or images of this checkout were changed while work was done in {folder}; its results "
            "stay there: undo the change, and run the same command to take them"
        )
    for item in items:
        for stage in read_chain(folder, work, item):
            for out in stage.outs:
                out.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(out) as partial:
                    shutil.copyfile(folder / out, partial)
            note = _JOURNAL / f"{stage.name}.{item}.json"
            if (folder / note).is_file():
                note.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / note, note)
    names = work.targets(items)
    command = dvc_command("commit", "--force", "--quiet", *names)
    if subprocess.run([*command], env={**os.environ, **dvc_environment()}).returncode:
        raise InputError(f"`dvc commit` of {', '.join(names)} failed; its message is above")
