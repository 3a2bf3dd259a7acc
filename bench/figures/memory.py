"""The memory of the kernel maps, and the number of instructions that the verifier processes."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import ExitStack, closing
from pathlib import Path

from bench.figures.established import MANY, stream_of
from bench.report.results import Row, Sample
from bench.rig import documents
from bench.rig.answering import establish
from bench.rig.measure import Bench, entered
from bench.rig.peers import Enforcer
from enforcer.constants import UDP
from enforcer.datapath import syscall
from enforcer.gateway.gateway import Gateway
from lab.netns import LabError

MEMORY = "Memory and verifier"
_FLOWS = 100_000
_BY_FLOWS = ("flows", "fast_buckets", "bucket_locks")
"""Maps whose size follows limits.flows."""
_VERIFIED = 216  # offset of verified_insns in struct bpf_prog_info
_INFORMATION = 232


def memory(bench: Bench) -> None:
    """Measures a gateway with the default limits; the rows also have the values of the run before."""
    bench.say(MEMORY)
    with ExitStack() as stack:
        (peer,) = entered([Enforcer(bench.programs, bench.directory, documents.gateway())], stack)
        assert isinstance(peer, Enforcer)
        gateway = Gateway(peer.instance)
        assert gateway.pins is not None
        with closing(gateway.maps()) as maps:
            entries = maps.flows.info.entries
            empty = _sizes(maps.directory)
        establish(bench.generator, peer, stream_of(4, UDP, MANY))
        full = _sizes(maps.directory)
        programs = _verified(gateway.pins.program_paths())
    figures = [
        (f"all maps, room for {entries:,} flows", "MiB", sum(empty.values())),
        *(
            (f"map {name}, per {_FLOWS:,} flows it has room for", "MiB", empty[name] / entries * _FLOWS)
            for name in _BY_FLOWS
        ),
        (
            f"all three, per {_FLOWS:,} flows",
            "MiB",
            sum(empty[name] for name in _BY_FLOWS) / entries * _FLOWS,
        ),
        (f"growth with {MANY:,} flows that are there", "MiB", sum(full.values()) - sum(empty.values())),
        *((f"{name}, verified instructions", "", count) for name, count in programs.items()),
    ]
    bench.add(
        [
            Row(MEMORY, "", what, unit, (Sample(value),), bench.previous.get((MEMORY, "", what)))
            for what, unit, value in figures
        ]
    )


def _sizes(directory: Path) -> dict[str, float]:
    """MiB of each pinned map."""
    return {path.name: _size(path) for path in sorted(directory.iterdir())}


def _size(path: Path) -> float:
    fd = syscall.get(str(path))
    try:
        return map_memory(fd)
    finally:
        os.close(fd)


def map_memory(fd: int) -> float:
    """MiB that a map takes, as the kernel reports it (bpf_map_show_fdinfo)."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock"):
            return int(line.split()[1]) / 2**20
    raise LabError("the kernel does not say a map's memory")


def _verified(programs: list[Path]) -> dict[str, int]:
    """Instructions that the verifier processed, by program; its limit is one million."""
    found = {}
    for path in sorted(programs):
        fd = syscall.get(str(path))
        information = ctypes.create_string_buffer(_INFORMATION)
        asked = struct.pack("<IIQ", fd, _INFORMATION, syscall.address(information))
        try:
            syscall.call(syscall.OBJ_GET_INFO, asked)
        finally:
            os.close(fd)
        (found[path.name],) = struct.unpack_from("<I", information, _VERIFIED)
    return found
