"""Results come in the order of the items, from the processes asked for, and only a few are under way at a time.

The functions mapped are the standard library's: another process finds them by name.
"""

import math
import operator
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.parallel import map_in_order

ROOT = Path(__file__).resolve().parents[1]
PID = "__import__('os').getpid()"
SLOW_FIRST = "__import__('time').sleep(0.3 if {0} == 0 else 0) or {0}"


def test_one_worker_is_this_process():
    assert list(map_in_order(operator.neg, range(5), 1)) == [0, -1, -2, -3, -4]
    assert list(map_in_order(eval, [PID], 1)) == [os.getpid()]


def test_order_holds_when_the_first_item_takes_longest():
    assert list(map_in_order(eval, (SLOW_FIRST.format(i) for i in range(20)), 2)) == list(range(20))


def test_more_workers_are_other_processes_and_few():
    processes = set(map_in_order(eval, [PID] * 20, 2))
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2


def test_workers_begin_with_the_module_that_was_preloaded():
    found = "'colorsys' in __import__('sys').modules"
    script = (
        "from pipeline.parallel import map_in_order, preload_workers\n"
        "preload_workers('colorsys', 1)\n"  # no worker, nothing to start
        "preload_workers('colorsys', 2)\n"
        "preload_workers('wave', 2)\n"  # too late, and no error
        f'print(set(map_in_order(eval, ["{found}"] * 6, 2)), {found})\n'
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["{True}", "False"]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_items_no_results(workers):
    assert list(map_in_order(operator.neg, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_arrives_after_the_results_before_it(workers):
    results = map_in_order(math.sqrt, [4.0, 9.0, -1.0, 16.0], workers)
    assert [next(results), next(results)] == [2.0, 3.0]
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        next(results)


def test_items_are_taken_only_as_results_are():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = map_in_order(operator.neg, items(), 2)
    for count in range(1, 11):
        next(results)
        assert len(taken) <= 8 + count
    results.close()
    assert len(taken) <= 18


def test_a_process_that_is_killed_ends_in_one_error_with_a_cure():
    with pytest.raises(InputError, match=r"one of 2 processes died.*lower housekeeping\.workers"):
        list(map_in_order(eval, ["__import__('os').kill(__import__('os').getpid(), 9)"] * 3, 2))


_KILLED_OWNER = f"""
import os
from pipeline.parallel import map_in_order
for worker in map_in_order(eval, [{PID!r}] * 4, 2):
    print(worker, flush=True)
    os.kill(os.getpid(), 9)
"""
_KILLED_TRAINING = """
import os
from pipeline.images.dataset import make_loader
batches = iter(make_loader(list(range(100)), 1, 1, pin=False))
next(batches)
print(batches._workers[0].pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("script", [_KILLED_OWNER, _KILLED_TRAINING], ids=["map_in_order", "loader"])
def test_no_worker_outlives_the_process_that_started_it(script):
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -9
    (worker,) = done.stdout.split()
    end = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end, "a worker is left"
        time.sleep(0.05)
