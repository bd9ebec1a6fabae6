"""Memory that ran out is told from other errors, whichever library says so; and what errors say fits in a line."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import InputError, explain_exhaustion, one_line_errors, shorten


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**9,), np.dtype(float)),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("std::bad_alloc"),
        cv2.error("OpenCV(5) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 1 bytes"),
    ],
)
def test_memory_that_ran_out_gets_a_cure(error):
    explained = explain_exhaustion(error)
    assert "memory ran out" in explained
    assert "train.batch" in explained
    assert "housekeeping.workers" in explained
    assert "\n" not in explained


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("memory"), KeyError("a")])
def test_other_errors_are_left_to_their_traceback(error):
    assert explain_exhaustion(error) is None


@pytest.mark.parametrize(
    ("error", "most", "line"),
    [
        (ValueError("a\n  b\tc "), 200, "a b c"),
        (ValueError("x" * 300), 200, "x" * 200),
        ("plain  text", 7, "plain t"),
        (ValueError(), 200, ""),
    ],
)
def test_what_an_error_says_becomes_a_line(error, most, line):
    assert shorten(error, most) == line


def test_what_the_user_can_mend_ends_in_one_line_and_a_defect_in_its_traceback():
    with pytest.raises(SystemExit, match=r"^error: mend this$"), one_line_errors():
        raise InputError("mend this")
    with pytest.raises(SystemExit, match=r"^error: memory ran out \(MemoryError\)"), one_line_errors():
        raise MemoryError
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("defect")


def test_what_the_system_or_a_library_of_networks_says_ends_in_one_line_too():
    with (
        pytest.raises(SystemExit, match=r"^error: \[Errno 2\] No such file or directory: '/nowhere/a'$"),
        one_line_errors(),
    ):
        Path("/nowhere/a").read_text()
    with pytest.raises(SystemExit, match=r"^error: 404 Not Found Make sure x{900}") as end, one_line_errors():
        raise ConnectionError("404 Not Found\n\nMake sure " + "x" * 3000)
    assert len(end.value.code) < 1100


def test_an_interruption_says_what_to_do_and_ends_in_130(capsys):
    with pytest.raises(SystemExit) as end, one_line_errors("run it again"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "run it again\n"
