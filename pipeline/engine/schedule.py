"""When each stage would run on another number of cores, by the seconds that they took here.

In: what the stages of the last run noted of their seconds. Out: when each would begin and end, as `run_on_processes`
orders them where memory suffices. That folds side by side share a machine's memory and caches is not in it, nor are
DVC's own seconds. Stages that run once, and did not since git brought their results, take no time here.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.engine.work import Work
from pipeline.errors import InputError

_BEFORE, _AFTER = ("prepare", "folds"), ("evaluate", "submit", "report")


class Slot(NamedTuple):
    """When a stage runs, in seconds from the start of the run."""

    stage: str
    begin_s: float
    end_s: float


def schedule(seconds: Mapping[str, float], parts: Sequence[Work], places: int) -> list[Slot]:
    """Return when each stage would run, in the order of their beginnings.

    Args:
        seconds: of each stage, by DVC's name for it: `train@main-0`.
        parts: what is handed out, of `list_work`.
        places: how many folds, or shares of the test set, run at a time.

    Raises:
        InputError: a stage of a fold or share has no seconds.
    """
    seconds = dict.fromkeys((*_BEFORE, *_AFTER), 0.0) | dict(seconds)
    slots = _chain(seconds, _BEFORE, 0.0)
    for work in parts:
        free = [slots[-1].end_s] * places
        begun = []
        for item in work.items:
            place = min(range(places), key=free.__getitem__)
            begun += _chain(seconds, work.targets([item]), free[place])
            free[place] = begun[-1].end_s
        # What comes next waits for all of them, so the last of the list is the last to end.
        slots += sorted(begun, key=lambda slot: slot.end_s)
    slots += _chain(seconds, _AFTER, slots[-1].end_s)
    return sorted(slots, key=lambda slot: slot.begin_s)


def _chain(seconds: Mapping[str, float], stages: Sequence[str], begin_s: float) -> list[Slot]:
    slots = []
    for stage in stages:
        if stage not in seconds:
            raise InputError(f"{stage} has noted no seconds here; `dvc repro --force --single-item {stage}` runs it")
        slots.append(Slot(stage, begin_s, begin_s + seconds[stage]))
        begin_s = slots[-1].end_s
    return slots
