"""The pipeline itself, where there is room: `compose`, `run`, `schedule`, and `template` for clusters' queues."""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from pipeline.commands.command import (
    FOLDS,
    JOURNAL,
    PARAMS,
    STORAGE,
    Commands,
    add_engine,
    check_engine,
    read_count,
    read_jobs,
)
from pipeline.commands.prediction import add_images, find_key, list_words


def add_commands(commands: Commands) -> None:
    """Add the parsers of these commands."""
    run = commands.add_parser(
        "run", help="bring all that params.yaml describes up to date, as `dvc repro` does, but side by side what can be"
    )
    run.add_argument(
        "--jobs",
        type=read_jobs,
        default="auto",
        metavar="auto|N",
        help="folds, or shares of the test set, at a time; auto, the default, is one for each GPU, or as many as cores "
        "and memory take",
    )
    add_engine(run)
    run.add_argument(
        "--storage",
        type=Path,
        metavar="DIR",
        help=f"a folder that all machines of a cluster see; default: {STORAGE}. Without --engine ray, what is finished "
        "there is taken",
    )
    alone = run.add_mutually_exclusive_group()
    for name in ("fold", "share"):
        alone.add_argument(
            f"--{name}",
            metavar="ITEM",
            help=f"run the stages of this {name} alone, `main-0` say, or its place in their list, counted from 0, in a "
            "folder that `template` or `--engine ray` has laid out",
        )
    run.set_defaults(call=_run)

    schedule = commands.add_parser(
        "schedule",
        help="print when each stage of `run` would run on so many CPU cores, by the seconds that they took here",
    )
    schedule.add_argument("--cores", type=read_count, default=8, metavar="N", help="default: %(default)s")
    schedule.set_defaults(call=_schedule)

    compose = commands.add_parser(
        "compose", help="write params.yaml, as `dvc exp run -S` does, and run nothing; `run` then brings all up to date"
    )
    compose.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as after -S: data=full, train.epochs=60; without any: the defaults",
    )
    compose.set_defaults(call=_compose)

    template = commands.add_parser(
        "template",
        help="print an array of jobs for the queue of a cluster: parts of `run`, which it prepares and lays out, or "
        "shares of `predict`",
    )
    template.add_argument("queue", choices=("slurm", "k8s"), help="Slurm's sbatch, or an Indexed Job of Kubernetes")
    template.set_defaults(call=_print_parts, what="folds", storage=STORAGE)
    whats = template.add_subparsers(title="what", metavar="WHAT", description="folds by default")
    for name, what in (("folds", "fold"), ("testset", "share of the test set, once all folds are done")):
        parts = whats.add_parser(name, help=f"a job for each {what}; `run --storage DIR` takes their results")
        parts.add_argument(
            "--storage",
            type=Path,
            default=STORAGE,
            metavar="DIR",
            help="a folder that all machines of the cluster see; default: %(default)s, where they see this checkout",
        )
        parts.set_defaults(call=_print_parts, what=name)
    shares = whats.add_parser("predict", help="a job for each share; `predict` without --share makes the tables")
    add_images(shares)
    shares.add_argument("--shares", type=read_count, default=8, metavar="N", help="jobs at most; default: %(default)s")
    shares.set_defaults(call=_print_shares)


def _run(arguments: argparse.Namespace) -> None:
    from pipeline.engine.chain import run_chain
    from pipeline.engine.checkout import check_archives
    from pipeline.engine.cluster import run_on_cluster
    from pipeline.engine.machine import find_places
    from pipeline.engine.processes import run_on_processes
    from pipeline.engine.work import list_work
    from pipeline.errors import InputError, one_line_errors
    from pipeline.launch import stop_on_request
    from pipeline.params import load_params

    is_ray = check_engine(arguments)
    alone = [(name, item) for name in ("fold", "share") if (item := getattr(arguments, name)) is not None]
    if alone and (is_ray or arguments.storage or arguments.jobs):
        raise InputError(f"--{alone[0][0]} runs one here; leave out --engine, --storage and --jobs")
    if is_ray and arguments.jobs:
        raise InputError("--engine ray: its machines take as many folds as they have room for; leave out --jobs")
    storage: Path = arguments.storage or STORAGE
    if arguments.storage and not is_ray and not storage.is_dir():
        raise InputError(f"--storage {storage}: no such folder; name the one that `template` was given")
    stop_on_request()
    with one_line_errors("stopped; every fold has saved where it was: run the same command to go on"):
        params = load_params(PARAMS)
        parts = list_work(params.member_ids, params.folds, params.data)
        if alone:
            name, item = alone[0]
            work = next(part for part in parts if part.name == name)
            sys.exit(run_chain(work, work.find(item)))
        check_archives(params.data)
        if is_ray:
            run_on_cluster(parts, params.cluster, arguments.address, storage)
        else:
            run_on_processes(parts, find_places(params.runtime, arguments.jobs), storage if storage.is_dir() else None)


def _schedule(arguments: argparse.Namespace) -> None:
    from pipeline.engine.schedule import schedule
    from pipeline.engine.work import list_work
    from pipeline.errors import InputError
    from pipeline.launch import read_seconds
    from pipeline.params import load_params

    params = load_params(PARAMS)
    places = arguments.cores // params.runtime.threads
    if not places:
        raise InputError(
            f"--cores {arguments.cores}: a fold has runtime.threads = {params.runtime.threads}; give as many cores"
        )
    seconds = read_seconds(JOURNAL)
    slots = schedule(seconds, list_work(params.member_ids, params.folds, params.data), places)
    if idle := [stage for stage, _, _ in slots if stage not in seconds]:
        print(f"up to date when the others ran, and counted as no time: {', '.join(idle)}")
    width = max(len(stage) for stage, _, _ in slots) + 1
    for stage, begin_s, end_s in slots:
        print(f"{stage:{width}}{begin_s:8.0f} s .. {end_s:5.0f} s")
    one_by_one = sum(end_s - begin_s for _, begin_s, end_s in slots)
    at_a_time = f"folds at a time: {places}, threads of each: {params.runtime.threads}"
    print(
        f"{slots[-1].end_s:.0f} s on {arguments.cores} cores ({at_a_time}); {one_by_one:.0f} s one after another; "
        "DVC's own seconds, some per stage, come to that"
    )


def _compose(arguments: argparse.Namespace) -> None:
    from pipeline.compose import compose_params, write_composed

    compose_params(arguments.overrides)  # refuses what is wrong before anything is written
    write_composed(PARAMS, arguments.overrides)
    print(
        f"{PARAMS}: {' '.join(arguments.overrides) or 'the defaults'}; `python -m pipeline run` brings all up to date"
    )


def _print_parts(arguments: argparse.Namespace) -> None:
    from pipeline.engine.checkout import check_archives, find_stale
    from pipeline.engine.processes import held_checkout, repro, take_finished
    from pipeline.engine.storage import lay_out, lend
    from pipeline.engine.templates import WRITERS, Array
    from pipeline.engine.work import list_work
    from pipeline.errors import InputError
    from pipeline.params import load_params

    params = load_params(PARAMS)
    check_archives(params.data)
    folds, shares = list_work(params.member_ids, params.folds, params.data)
    work = shares if arguments.what == "testset" else folds
    with held_checkout() as handle:
        repro("folds", handle=handle, is_quiet=True)
        stale = [*find_stale(folds, folds.items)] if arguments.what == "testset" else []
        if left := take_finished(arguments.storage, folds, stale) if stale else []:
            raise InputError(
                f"folds {', '.join(left)} are not finished, and the test set is predicted by all; wait for "
                "their jobs, or let `python -m pipeline run` do them here"
            )
        folder = lay_out(arguments.storage, work)
        lend(folder, work, work.items, find_stale(work, work.items))
    words = ["python", "-m", "pipeline", "run", f"--{work.name}", "{index}"]
    array = Array(f"nuclei-{arguments.what}", len(work.items), words, folder)
    print(WRITERS[arguments.queue](array, params.cluster), end="")


def _print_shares(arguments: argparse.Namespace) -> None:
    from pipeline.commands.kept import find_run
    from pipeline.engine.templates import WRITERS, Array
    from pipeline.params import load_params
    from pipeline.predict.paths import check_run, choose_images, list_images
    from pipeline.predict.shards import cut_shards

    arguments.run = find_run(arguments.run)
    check_run(arguments.run / FOLDS)
    with redirect_stdout(sys.stderr):  # stdout is the script's
        images = choose_images(list_images(arguments.images, arguments.out), arguments.out)
        shares = min(arguments.shares, len(cut_shards(images, arguments.out, "")))
        if shares < arguments.shares:
            print(f"{len(images)} images, shards: {shares}, a job each")
    params = load_params(arguments.run / PARAMS)
    words = ["python", *list_words(arguments, f"{{index}}/{shares}", find_key(arguments))]
    array = Array("nuclei-predict", shares, words, Path.cwd())
    print(WRITERS[arguments.queue](array, params.cluster), end="")
