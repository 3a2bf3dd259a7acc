"""Runs the programs of bpf/sweep.h by BPF_PROG_TEST_RUN, on any number of elements."""

from __future__ import annotations

import numpy as np

from enforcer.constants.bpf import KEYS_AT, REAP_BATCH
from enforcer.datapath import syscall
from enforcer.datapath.programs import Pins


def run_once(pins: Pins, program: str, mark: int) -> int:
    """Runs a pinned program whose only argument is the mark; returns its return value."""
    with pins.open(program) as fd:
        try:
            return syscall.test_run(fd, bytes(KEYS_AT), mark=mark)[0]
        except OSError as error:
            raise syscall.explain_error(error, f"running the program {program}") from error


def run_on(pins: Pins, program: str, elements: np.ndarray, mark: int = 0) -> int:
    """Runs a pinned program on all elements with this mark; returns the sum of its return values."""
    if not len(elements):
        return 0
    done = 0
    with pins.open(program) as fd:
        try:
            for start in range(0, len(elements), REAP_BATCH):
                data = bytes(KEYS_AT) + elements[start : start + REAP_BATCH].tobytes()
                done += syscall.test_run(fd, data, mark=mark)[0]
        except OSError as error:
            raise syscall.explain_error(error, f"running the program {program}") from error
    return done
