"""The pipeline itself, wherever there is room for it: `run`, and `template` for the queues of clusters."""

import argparse
import sys
from pathlib import Path

from pipeline.commands.command import PARAMS, Commands, add_engine, read_count, read_jobs
from pipeline.commands.prediction import add_images, list_words


def add_commands(commands: Commands) -> None:
    """Add the parsers of these commands."""
    run = commands.add_parser(
        "run", help="bring all that params.yaml describes up to date, as `dvc repro` does, but folds side by side"
    )
    run.add_argument(
        "--jobs",
        type=read_jobs,
        default="auto",
        metavar="auto|N",
        help="folds at a time; auto, the default, is one for each GPU, or as many as cores and memory take",
    )
    add_engine(run)
    run.add_argument(
        "--storage",
        type=Path,
        metavar="DIR",
        help="a folder that all machines of the cluster see; without --engine ray, what is finished there is taken",
    )
    run.add_argument(
        "--fold",
        type=int,
        metavar="K",
        help="run the stages of this fold alone, in a folder that `template` or `--engine ray` has laid out",
    )
    run.set_defaults(call=_run)

    template = commands.add_parser(
        "template", help="print an array of jobs for the queue of a cluster: the folds of `run`, or shares of `predict`"
    )
    template.add_argument("queue", choices=("slurm", "k8s"), help="Slurm's sbatch, or an Indexed Job of Kubernetes")
    whats = template.add_subparsers(title="what", required=True, metavar="WHAT")
    folds = whats.add_parser("folds", help="a job for each fold; `run --storage DIR` takes their results")
    folds.add_argument(
        "--storage", type=Path, required=True, metavar="DIR", help="a folder that all machines of the cluster see"
    )
    folds.set_defaults(call=_print_folds)
    shares = whats.add_parser("predict", help="a job for each share; `predict` without --share makes the tables")
    add_images(shares)
    shares.add_argument("--shares", type=read_count, default=8, metavar="N", help="jobs; default: %(default)s")
    shares.set_defaults(call=_print_shares)


def _run(arguments: argparse.Namespace) -> None:
    from pipeline.engine.chain import run_chain
    from pipeline.engine.cluster import run_cluster
    from pipeline.engine.folds import run_folds
    from pipeline.engine.machine import find_places
    from pipeline.errors import InputError, one_line_errors
    from pipeline.launch import stop_on_request
    from pipeline.params import load_params

    is_ray = arguments.engine == "ray"
    if arguments.fold is not None and (is_ray or arguments.storage or arguments.jobs):
        raise InputError("--fold runs one fold in this process; leave out --engine, --storage and --jobs")
    if is_ray and arguments.jobs:
        raise InputError("--engine ray: its machines take as many folds as they have room for; leave out --jobs")
    if is_ray and arguments.storage is None:
        raise InputError("--engine ray: name a folder that all machines of the cluster see by --storage")
    stop_on_request()
    with one_line_errors("stopped; every fold has saved where it was: run the same command to go on"):
        params = load_params(PARAMS)
        if arguments.fold is not None:
            sys.exit(run_chain(arguments.fold))
        if is_ray:
            run_cluster(params.folds.ids, params.cluster, arguments.address, arguments.storage)
        else:
            run_folds(params.folds.ids, find_places(params.runtime, arguments.jobs), arguments.storage)


def _print_folds(arguments: argparse.Namespace) -> None:
    from pipeline.engine.folds import held_checkout, repro
    from pipeline.engine.storage import lay_out
    from pipeline.engine.templates import WRITERS, Array
    from pipeline.params import load_params

    params = load_params(PARAMS)
    with held_checkout() as handle:
        repro("folds", handle=handle, is_quiet=True)
        folder = lay_out(arguments.storage)
    words = ["python", "-m", "pipeline", "run", "--fold", "{index}"]
    array = Array("nuclei-folds", len(params.folds.ids), words, folder)
    print(WRITERS[arguments.queue](array, params.cluster), end="")


def _print_shares(arguments: argparse.Namespace) -> None:
    from pipeline.engine.templates import WRITERS, Array
    from pipeline.params import load_params

    words = ["python", *list_words(arguments, f"{{index}}/{arguments.shares}")]
    array = Array("nuclei-predict", arguments.shares, words, Path.cwd())
    print(WRITERS[arguments.queue](array, load_params(arguments.run / PARAMS).cluster), end="")
