"""Finds or mounts the BPF file system, and names the directory of a gateway's pins in it.

Each network namespace has a directory named by the namespace's cookie, which is unique until the next boot.
Each mount of a bpffs is a separate instance, and ``ip netns exec`` hides the machine's: so the mount
namespaces of process 1 (which a container may deny) and of the parent processes are searched too.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from enforcer.errors import KernelError, UntrustedError
from enforcer.instance import trust

_BPF_FS_MAGIC = 0xCAFE4A11
_MOUNT_POINTS = ("/sys/fs/bpf", "/run/enforcer/bpf")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_libc = ctypes.CDLL(None, use_errno=True)


def _is_bpffs(path: str) -> bool:
    buffer = (ctypes.c_long * 32)()  # struct statfs begins with f_type
    return _libc.statfs(os.fsencode(path), buffer) == 0 and buffer[0] == _BPF_FS_MAGIC


def _processes() -> Iterator[str]:
    """Processes whose mount namespace may be the machine's: self, process 1, then the ancestors upwards."""
    yield "self"
    yield "1"
    pid = os.getppid()
    while pid > 1:
        yield str(pid)
        try:
            # proc(5): the parent's id is the second field after the name, which may contain any character.
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


@cache
def _held(path: str) -> Path:
    """A path that stays valid after the process whose /proc entry led there has ended."""
    return Path(f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}")


def find_bpffs() -> Path | None:
    """The path of a writable bpffs that all processes of the machine share, or None."""
    for mount_point in _MOUNT_POINTS:
        for process in _processes():
            path = mount_point if process == "self" else f"/proc/{process}/root{mount_point}"
            if _is_bpffs(path) and os.access(path, os.W_OK):
                return Path(path) if process in ("self", "1") else _held(path)
    return None


def mount_bpffs() -> Path:
    """The path of find_bpffs; mounts a bpffs in the outermost permitted mount namespace if needed."""
    found = find_bpffs()
    if found:
        return found
    ourselves, first, *above = _processes()
    message = ""
    for mount_point in _MOUNT_POINTS:
        command = f"mkdir -p {mount_point} 2>/dev/null; exec mount -t bpf -o mode=700 bpf {mount_point}"
        for process in (first, *reversed(above), ourselves):
            done = subprocess.run(
                ["nsenter", f"--mount=/proc/{process}/ns/mnt", "sh", "-c", command],
                capture_output=True,
                text=True,
                check=False,
                env={"PATH": _PATH},
            )
            found = find_bpffs()
            if found:
                return found
            message = done.stderr.strip()
    raise KernelError(
        f"no BPF file system can be mounted: {message}",
        "Mount one with `mount -t bpf -o mode=700 bpf /sys/fs/bpf`; it needs CONFIG_BPF_SYSCALL and "
        "CAP_SYS_ADMIN.",
    )


def directory(bpffs: Path, cookie: int) -> Path:
    """The directory of one gateway's pins. Raises UntrustedError if another user could have prepared it."""
    ours = bpffs / "enforcer"
    private = ours / f"{cookie:x}"
    try:
        trust.check_mount(bpffs)
        trust.check_directory(ours)
        trust.check_directory(private)
    except UntrustedError as error:
        raise UntrustedError(error.message, f"{error.hint}\nKeep others out: chmod 700 {bpffs}") from None
    return private


def create(private: Path) -> None:
    """Creates the directory of a gateway's pins. Raises UntrustedError if another user created it."""
    trust.make_directory(private.parent)
    trust.make_directory(private)
