"""The BPF programs of generator, sinks and floor, compiled in a child and held by file descriptor.

``python -m bench.rig.programs DIRECTORY`` compiles, pins everything in DIRECTORY and prints the maps'
layouts as JSON; BCC's compiler ends with that process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Self

from enforcer.control.interpreter import PYTHON
from enforcer.datapath import compiler, syscall
from enforcer.datapath.bpffs import mount_bpffs
from enforcer.datapath.maps import Maps
from enforcer.errors import KernelError

OUTSIDE_INDEX = 3
"""The interface index of every gateway's outside interface, a constant of the floor's program."""
KINDS = {
    **dict.fromkeys(("generate", "sink_far", "sink_timed", "pass_far", "sink_near"), "XDP"),
    **dict.fromkeys(("redirect", "reflect"), "SCHED_CLS"),
}


class Programs:
    """Loaded programs by name (file descriptors), and their maps; a context manager."""

    def __enter__(self) -> Self:
        self._directory = mount_bpffs() / f"enforcer-bench-{os.getpid()}"
        self._directory.mkdir()
        try:
            done = subprocess.run(
                [*PYTHON, "-m", "bench.rig.programs", str(self._directory)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise KernelError("the benchmark's programs cannot be loaded", done.stderr.strip())
            self.fds = {name: syscall.get(str(self._directory / name)) for name in KINDS}
            self.maps = Maps(self._directory, json.loads(done.stdout))
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.maps.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def main(directory: Path) -> None:
    """Runs in the child: compiles and pins the programs, and prints the layouts."""
    text = files("bench.rig").joinpath("traffic.c").read_text()
    flags = [f'-DPIN_DIRECTORY="{directory}"', f"-DOUTSIDE_INDEX={OUTSIDE_INDEX}"]
    compiled = compiler.compile_text(text, flags, KINDS)
    for name, fd in compiled.programs.items():
        syscall.pin(fd, str(directory / name))
    json.dump(compiled.layouts, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
