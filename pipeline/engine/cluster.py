"""A run whose folds are trained by the machines of a Ray cluster, and the rest here.

In and out: the checkout that is the current folder, and a folder that all machines see.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.engine.checkout import list_stale
from pipeline.engine.folds import held_checkout, repro
from pipeline.engine.ray_tasks import Task, run_on_ray
from pipeline.engine.storage import adopt, driving, lay_out, list_unfinished
from pipeline.errors import InputError
from pipeline.params import ClusterParams


def run_cluster(ids: Sequence[int], cluster: ClusterParams, address: str, storage: Path) -> None:
    """Bring the checkout up to date, the stale ones of the folds `ids` on the machines of the cluster at `address`.

    Raises:
        InputError: a stage failed; the folds that did not fail are kept in `storage`, and the same command goes on. Or
            another run is at work, here or on the same folds.
        KeyboardInterrupt: this process was asked to stop; trainings have saved their states there.
    """
    with held_checkout() as handle:
        repro("folds", handle=handle)
        if stale := list_stale(ids):
            folder = lay_out(storage)
            with driving(folder):
                tasks = [make_task(folder, fold) for fold in list_unfinished(folder, stale)]
                if failed := run_on_ray(tasks, address, cluster) if tasks else "":
                    raise InputError(f"folds failed (the others went on):\n{failed}")
                if damaged := list_unfinished(folder, stale):
                    raise InputError(
                        f"{folder}: results of fold {damaged[0]} are not whole; run the same command again"
                    )
                adopt(folder, stale)
        repro(handle=handle)


def make_task(folder: Path, fold: int) -> Task:
    """Return the task that runs the stages of a fold in `folder`."""
    words = ("-m", "pipeline", "run", "--fold", str(fold))
    return Task(f"fold {fold}", words, folder, folder / ".resume/logs" / f"fold{fold}.log")
