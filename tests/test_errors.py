"""Memory that ran out is told from other errors, whichever library says so."""

import cv2
import numpy as np
import pytest

from pipeline.errors import explain_exhaustion


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
    assert "\n" not in explained


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("memory"), KeyError("a")])
def test_other_errors_are_left_to_their_traceback(error):
    assert explain_exhaustion(error) is None
