"""A run whose folds, and shares of the test set, are the work of a Ray cluster, and the rest of this machine.

In and out: the checkout that is the current folder, and a folder that all machines see.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.engine.checkout import find_stale
from pipeline.engine.processes import LOGS, held_checkout, repro
from pipeline.engine.ray_tasks import Task, connected, run_on_ray
from pipeline.engine.storage import adopt, driving, lay_out, lend, list_unfinished
from pipeline.engine.work import Work
from pipeline.errors import InputError
from pipeline.housekeeping import ClusterParams


def run_on_cluster(parts: Sequence[Work], cluster: ClusterParams, address: str | None, storage: Path) -> None:
    """Bring the checkout up to date, what is stale of `parts` on the machines of the cluster at `address`.

    Args:
        parts: what is handed out, of `list_work`.
        cluster: what a task asks for.
        address: of the cluster.
        storage: a folder that all its machines see.

    Raises:
        InputError: a stage failed; the folds that did not fail are kept in `storage`, and the same command goes on. Or
            another run is at work, here or on the same folds.
        KeyboardInterrupt: this process was asked to stop; trainings have saved their states there.
    """
    with held_checkout() as handle:
        repro("folds", handle=handle)
        for work in parts:
            if stale := find_stale(work, work.items):
                folder = lay_out(storage, work)
                with driving(folder):
                    lend(folder, work, [*stale], stale)
                    _run_work(folder, work, [*stale], cluster, address)
        repro(handle=handle)


def _run_work(folder: Path, work: Work, items: Sequence[str], cluster: ClusterParams, address: str | None) -> None:
    if tasks := [make_task(folder, work, item) for item in list_unfinished(folder, work, items)]:
        with connected(address) as ray:
            failed = run_on_ray(ray, tasks, cluster)
        if failed:
            raise InputError(f"{work.name}s failed (the others went on):\n{failed}")
        if damaged := list_unfinished(folder, work, items):
            raise InputError(f"{folder}: results of {work.name} {damaged[0]} are not whole; run the same command again")
    adopt(folder, work, items)


def make_task(folder: Path, work: Work, item: str) -> Task:
    """Return the task that runs the stages of a fold or share in `folder`."""
    words = ("-m", "pipeline", "run", f"--{work.name}", item)
    return Task(f"{work.name} {item}", words, folder, folder / LOGS / f"{work.name}-{item}.log")
