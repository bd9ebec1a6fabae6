"""Images of your own: `predict`."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.command import FOLDS, PARAMS, Commands, add_engine, check_engine, read_jobs, read_share

if TYPE_CHECKING:
    from pipeline.engine.machine import Place
    from pipeline.housekeeping import ClusterParams, HousekeepingParams
    from pipeline.params import Params
    from pipeline.predict.segment import Segmenter, TrainedRun
    from pipeline.predict.shards import Shard


_LONGEST = 100_000  # characters of an argument; Linux takes 131,071


def add_commands(commands: Commands) -> None:
    """Add the parsers of these commands."""
    predict = commands.add_parser("predict", help="find the nuclei in images of your own")
    add_images(predict)
    predict.add_argument(
        "--jobs",
        type=read_jobs,
        default="auto",
        metavar="auto|N",
        help="processes side by side, or tasks of Ray; auto, the default, is one for each GPU, or as many as cores and "
        "memory take; with Ray as many as its machines have room for",
    )
    predict.add_argument(
        "--share",
        type=read_share,
        metavar="K/N",
        help="find the images of the Kth of N shares alone, 0/4 to 3/4 say, in this process: for jobs of a cluster",
    )
    predict.add_argument("--key", help=argparse.SUPPRESS)  # of what is found, where shares are handed out
    add_engine(predict)
    predict.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="pass over what was found before, the default, or find it anew",
    )
    predict.set_defaults(call=_predict)


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what is predicted, by which run, and where results go."""
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="PNG, JPEG or TIFF; a folder of them; a list of paths, *.txt; or a pattern in quotes",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where label maps and tables go")
    parser.add_argument(
        "--run",
        type=Path,
        default=Path(),
        metavar="DIR|NAME",
        help="checkout of a trained run, or a kept run; default: the current folder",
    )
    parser.add_argument(
        "--channel",
        type=int,
        metavar="N",
        help="of files with several channels, take this one alone, counted from 0",
    )


def split(numbers: "Sequence[int]", shares: int) -> list[str]:
    """Return so many shares of the shards of these numbers, none of them empty, as --share takes them.

    Where a list would be too long for a command line, they are shares of all shards: what is done is passed over.
    """
    shares = min(shares, len(numbers))
    parts = [",".join(map(str, numbers[k::shares])) for k in range(shares)]
    return parts if max(map(len, parts), default=0) < _LONGEST else [f"{k}/{shares}" for k in range(shares)]


def list_words(arguments: argparse.Namespace, share: str, key: str | None = None) -> tuple[str, ...]:
    """Return the arguments of Python for a `predict` of one share, with those of `add_images`."""
    words = ["-m", "pipeline", "predict", "--out", str(arguments.out), "--run", str(arguments.run), "--share", share]
    words += [] if arguments.channel is None else ["--channel", str(arguments.channel)]
    words += ["--key", key] if key else []
    return (*words, "--", *map(str, arguments.images))  # behind `--`: a name may begin as an option does


def _predict(arguments: argparse.Namespace) -> None:
    from pipeline.commands.kept import find_run
    from pipeline.errors import InputError, one_line_errors
    from pipeline.launch import settle_threads, stop_on_request

    if check_engine(arguments) and arguments.share:
        raise InputError("--share is what a task of --engine ray is given; leave one of them out")
    settle_threads()  # before anything loads torch
    stop_on_request()
    same = "the same command" if arguments.resume else "the command without --no-resume"
    with one_line_errors(f"stopped; what was done is kept: run {same} to go on"):
        arguments.run = find_run(arguments.run)
        _find_all(arguments)


def _find_all(arguments: argparse.Namespace) -> None:
    from pipeline.engine.machine import find_places
    from pipeline.errors import InputError
    from pipeline.params import load_params
    from pipeline.predict.paths import MANIFEST, TABLE, check_out, check_run, choose_images, list_images
    from pipeline.predict.segment import load_segmenter
    from pipeline.predict.shards import collect, cut_shards, is_done, list_faults, runtime_of

    folds, out = arguments.run / FOLDS, arguments.out
    check_run(folds)
    images = choose_images(list_images(arguments.images, out), out)
    check_out(out)
    params = load_params(arguments.run / PARAMS)
    run, key = describe_run(folds, params), find_key(arguments)
    if arguments.key not in (None, key):
        raise InputError(
            f"{platform.node()}: networks, parameters, code or packages are others than where these shares were "
            "handed out, and so would the results be; install the same"
        )
    shards = cut_shards(images, out, key)
    numbers = range(len(shards)) if arguments.share is None else arguments.share(len(shards))
    own = [shards[number] for number in numbers]
    if not arguments.resume:
        for path in [shard.marker for shard in own] + [runtime_of(shard) for shard in own if not arguments.share]:
            path.unlink(missing_ok=True)
    # Of a share, what is done is passed over on the way, which the bar shows.
    todo = [number for number in numbers if arguments.share or not is_done(shards[number])]
    left = [shards[number] for number in todo]
    if passed := sum(len(shard.paths) for shard in own) - sum(len(shard.paths) for shard in left):
        print(f"{passed} of {len(images)} files were done before; --no-resume does them anew")
    places = [] if arguments.share else find_places(params.runtime, arguments.jobs)[: len(left)]
    if arguments.engine == "ray":
        if left:
            _find_on_ray(arguments, todo, key, params.cluster)
    elif len(places) > 1:
        _find_side_by_side(arguments, split(todo, len(places)), key, places)
    else:
        _find_here(left, lambda: load_segmenter(run), params.housekeeping, arguments)
    if arguments.share:
        print("this share is done; the same command without --share makes the tables of all")
        return
    found, faults = collect(shards, out)
    print(f"{found} images: {out / MANIFEST}, {out / TABLE}")
    if faults:
        raise list_faults(faults, len(images))


def find_key(arguments: argparse.Namespace) -> str:
    """Return a fingerprint of all that decides what the command finds in an image."""
    from pipeline.params import load_params
    from pipeline.predict.segment import fingerprint_run
    from pipeline.provenance import fingerprint

    params = load_params(arguments.run / PARAMS)
    options = {"channel": arguments.channel, "most": params.housekeeping.predict_max_pixels}
    return fingerprint({"run": fingerprint_run(describe_run(arguments.run / FOLDS, params)), **options})


def describe_run(folds: Path, params: "Params") -> "TrainedRun":
    """Return the trained run of a folder `folds`, whose parameters these are."""
    from pipeline.predict.segment import TrainedRun

    members = {name: (member.recipe, member.predict) for name, member in params.of_members.items()}
    return TrainedRun(folds, params.folds.ids, members, params.size, params.predict, params.select)


def _find_here(
    shards: "Sequence[Shard]",
    load: "Callable[[], Segmenter]",
    housekeeping: "HousekeepingParams",
    arguments: argparse.Namespace,
) -> None:
    from tqdm import tqdm

    from pipeline.predict.results import WRITERS
    from pipeline.predict.shards import run_shards
    from pipeline.progress import progress_bar

    label_map = next(iter(WRITERS))
    # On a terminal, above the bar.
    say = tqdm.write if sys.stderr.isatty() else print
    with progress_bar("predict", sum(len(shard.paths) for shard in shards)) as bar:
        for outcome in run_shards(shards, load, housekeeping, bar, arguments.channel):
            if not outcome.fault:
                say(f"{arguments.out / outcome.name}{label_map}: {outcome.nuclei} nuclei")
            elif arguments.share:  # else the error at the end names it
                say(outcome.fault)
            sys.stdout.flush()


def _find_on_ray(arguments: argparse.Namespace, todo: "Sequence[int]", key: str, cluster: "ClusterParams") -> None:
    """Let tasks of a Ray cluster find a share each of the shards of these numbers, by this very command."""
    from pipeline.engine.ray_tasks import Task, connected, count_room, run_on_ray
    from pipeline.errors import InputError
    from pipeline.predict.paths import MARKERS

    logs = (arguments.out / MARKERS).resolve()
    with connected(arguments.address) as ray:
        shares = split(todo, arguments.jobs or count_room(ray, cluster) or len(todo))
        tasks = [
            Task(f"share {k}", list_words(arguments, share, key), Path.cwd(), logs / f"share{k}.log")
            for k, share in enumerate(shares)
        ]
        failed = run_on_ray(ray, tasks, cluster)
    if failed:
        raise InputError(f"{failed}\nwhat was done is kept: run the same command to go on")


def _find_side_by_side(
    arguments: argparse.Namespace, shares: "Sequence[str]", key: str, places: "Sequence[Place]"
) -> None:
    """Let processes find a share each, by this very command."""
    from pipeline.engine.jobs import Job, run_side_by_side
    from pipeline.errors import InputError
    from pipeline.launch import OWNER
    from pipeline.predict.paths import MARKERS

    jobs = [
        Job(
            f"process {k}",
            (sys.executable, *list_words(arguments, share, key)),
            arguments.out / MARKERS / f"process{k}.log",
        )
        for k, share in enumerate(shares)
    ]
    owner = {OWNER: str(os.getpid())}
    if failed := run_side_by_side(jobs, [{**owner, **place} for place in places], "predict"):
        lines = [f"{job.name} ended in {job.status}: {job.last_line()}; its log is {job.log}" for job in failed]
        raise InputError("\n".join([*lines, "what was done is kept: run the same command to go on"]))
