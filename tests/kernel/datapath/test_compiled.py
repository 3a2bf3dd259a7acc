"""Compares compilations that a test run keeps (tests/compiled/bcc) with the output of BCC."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compiled.bcc import kernel, record

from enforcer.datapath import bpffs, syscall

FRONT = str(Path(kernel.__file__).parents[1])
# Prints the kernel's information on the loaded programs; their maps stay pinned.
COMPILE = """
import json, sys
from pathlib import Path
from enforcer.datapath import compiler, syscall

place = Path(sys.argv[1])
compiled = compiler.compile_programs(place / "maps", place / "stages", 4096, 1024)
programs = {}
for name, fd in compiled.programs.items():
    maps = [syscall.open_by_id(syscall.MAP_GET_FD_BY_ID, each) for each in syscall.program_maps(fd)]
    tag = syscall.program_info(fd)[1]
    programs[name] = [tag, syscall.program_name(fd), [syscall.map_name(each) for each in maps]]
with_bcc = any("libbcc" in line for line in open("/proc/self/maps"))
print(json.dumps({"layouts": compiled.layouts, "programs": programs, "with_bcc": with_bcc}))
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    made = bpffs.mount_bpffs() / f"enforcer-test-{os.getpid()}"
    made.mkdir()
    yield made
    shutil.rmtree(made, ignore_errors=True)


def compile_at(place: Path, kept: Path | None) -> dict[str, Any]:
    """Compiles in another process; without ``kept`` the process uses BCC only."""
    (place / "maps").mkdir(parents=True, exist_ok=True)
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = others | ({"PYTHONPATH": FRONT, record.DIRECTORY: str(kept)} if kept else {})
    argv = [sys.executable, "-c", COMPILE, str(place)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def maps_at(place: Path) -> dict[str, tuple[kernel.MapInformation, bytes]]:
    """The parameters and the BTF of each pinned map, by the name of its pin."""
    found = {}
    for path in (*(place / "maps").iterdir(), place / "stages"):
        fd = syscall.get(str(path))
        information = kernel.map_information(fd)
        # The BTF contains source lines with the path of the directory.
        btf = re.sub(rb"enforcer-test-\d+/\w+", b"", kernel.btf(information.btf))
        found[path.name] = replace(information, btf=0), btf
        os.close(fd)
    return found


def ids_at(place: Path) -> dict[str, int]:
    """The kernel's id of each pinned map, by the name of its pin."""
    found = {}
    for path in (*(place / "maps").iterdir(), place / "stages"):
        fd = syscall.get(str(path))
        found[path.name] = syscall.object_id(fd)
        os.close(fd)
    return found


def test_what_is_kept_is_what_bcc_makes(directory: Path, tmp_path: Path) -> None:
    alone = compile_at(directory / "bcc_1", None)
    first = compile_at(directory / "run_1", tmp_path)
    second = compile_at(directory / "run_2", tmp_path)
    assert [each.pop("with_bcc") for each in (alone, first, second)] == [True, True, False]
    assert alone == first == second
    maps = maps_at(directory / "bcc_1")
    assert len(maps) > 30
    assert maps == maps_at(directory / "run_1") == maps_at(directory / "run_2")


def test_pinned_maps_are_taken(directory: Path, tmp_path: Path) -> None:
    """The programs of an upgrade use the pinned maps, and a table of tail calls of their own."""
    compile_at(directory / "run_1", tmp_path)
    ids = ids_at(directory / "run_1")
    (directory / "run_1/stages").unlink()
    compile_at(directory / "run_1", tmp_path)
    again = ids_at(directory / "run_1")
    assert again.pop("stages") != ids.pop("stages")
    assert again == ids


def test_what_depends_on_text_or_flags_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(record.DIRECTORY, str(tmp_path))
    headers = [tmp_path / name for name in ("one", "equal", "other")]
    for place, content in zip(headers, ("a", "a", "b"), strict=True):
        (place / "linux").mkdir(parents=True)
        (place / "linux/types.h").write_text(content)
    one, equal, other = (f"-I{place}" for place in headers)
    here, there = '-DPIN_DIRECTORY="/a"', '-DPIN_DIRECTORY="/b"'
    file = record.file_of("text", [one, here, "-DFLOWS=1"])
    assert file == record.file_of("text", [equal, there, "-DFLOWS=1"])
    others = [
        record.file_of("text", [other, here, "-DFLOWS=1"]),
        record.file_of("text", [one, here, "-DFLOWS=2"]),
        record.file_of("another", [one, here, "-DFLOWS=1"]),
    ]
    assert len({file, *others}) == 4
