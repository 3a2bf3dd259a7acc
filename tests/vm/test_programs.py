"""Tests of the verifier: Debian's 6.1, older and stricter than other kernels, accepts all programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcer.datapath import bpffs, compiler, syscall


@pytest.fixture
def directory() -> Iterator[Path]:
    made = bpffs.mount_bpffs() / f"enforcer-test-{os.getpid()}"
    made.mkdir()
    yield made
    shutil.rmtree(made)


def test_the_verifier_takes_every_program(directory: Path) -> None:
    compiled = compiler.compile_programs(directory, directory / "stages", flows=65536, origins=4096)
    assert set(compiled.programs) == set(compiler.PROGRAMS)
    for fd in compiled.programs.values():
        assert syscall.program_info(fd)[0] > 0
