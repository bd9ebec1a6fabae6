"""A Ray cluster whose machines, workers and drivers are killed: folds end in the same bytes as on one machine."""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from tests.faults.kills import await_orphans, compare, finish, start
from tests.faults.workspace import clear_results, digest_results, make_workspace

_WAYS = ("machine", "worker", "driver")


def check(kills: int, seed: int) -> str:
    """Kill `kills` times while folds run on two machines of one core each, and compare with one that was left alone."""
    from ray.cluster_utils import Cluster

    rng, hit, runs = random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = make_workspace(Path(name).resolve())
        begin = time.monotonic()
        finish(folder)
        longest_s = time.monotonic() - begin
        wanted = digest_results(folder)
        clear_results(folder)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
            cluster.wait_for_nodes()
            while hit.total() < kills or runs == 0:
                arguments = ("run", "--engine", "ray", "--address", cluster.address, "--storage", f"{name}/shared")
                run = start(folder, *arguments, module="pipeline")
                while run.poll() is None:
                    end = time.monotonic() + rng.uniform(0.05, 0.5) * longest_s
                    while time.monotonic() < end and run.poll() is None:
                        time.sleep(0.05)
                    way = _WAYS[hit.total() % len(_WAYS)]
                    if hit.total() < kills and run.poll() is None and _kill(way, run, cluster, nodes):
                        hit[way] += 1
                if run.returncode != -signal.SIGKILL:
                    runs += 1
                    compare(folder, wanted, run.returncode, f"seed {seed}, after {hit.total()} kills")
                    clear_results(folder)
                    subprocess.run(["rm", "-rf", f"{name}/shared"], check=True)
        finally:
            cluster.shutdown()
    places = ", ".join(f"{count} of a {way}" for way, count in hit.most_common())
    return f"{kills} of {kills} kills survived ({places}); {runs} runs, each the same bit for bit"


def _kill(way: str, run: "subprocess.Popen[bytes]", cluster: Any, nodes: list[Any]) -> bool:
    """Kill a machine, a task's process, or the run itself, without grace; return whether there was one."""
    working = _find_tasks()
    if way == "driver":
        run.kill()
        run.wait()
        await_orphans(run.pid)
        return True
    if not working:
        return False
    if way == "worker":
        os.kill(working[0], signal.SIGKILL)
    else:
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1))
    return True


def _find_tasks() -> list[int]:
    """Return the processes of Ray that run a fold or share: the parents of `run --fold` and `run --share`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if {"--fold", "--share"} & {*process.cmdline()} and "run" in process.cmdline():
                found.append(process.ppid())
        except psutil.Error:
            continue
    return [pid for pid in found if pid > 1]
