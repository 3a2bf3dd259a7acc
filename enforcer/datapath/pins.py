"""Where a gateway's programs and maps are pinned.

One directory per network namespace, named by the namespace's cookie, which the kernel never uses
twice before it is booted again. A bpffs is an instance of its own wherever it is mounted, and
``ip netns exec`` hides the machine's: so the mount namespace of process 1 is asked as well.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from enforcer.errors import KernelError

_BPF_FS_MAGIC = 0xCAFE4A11
_PLACES = ("/sys/fs/bpf", "/run/enforcer/bpf")
_libc = ctypes.CDLL(None, use_errno=True)


def _is_bpffs(path: str) -> bool:
    buffer = (ctypes.c_long * 32)()  # struct statfs begins with f_type
    return _libc.statfs(os.fsencode(path), buffer) == 0 and buffer[0] == _BPF_FS_MAGIC


def find_bpffs() -> Path | None:
    """A bpffs that every process of the machine can reach, or None."""
    for place in _PLACES:
        for root in ("", "/proc/1/root"):
            if _is_bpffs(root + place) and os.access(root + place, os.W_OK):
                return Path(root + place)
    return None


def mount_bpffs() -> Path:
    """As find_bpffs, but mounts one, in the mount namespace of process 1, if there is none."""
    found = find_bpffs()
    if found:
        return found
    message = ""
    for place in _PLACES:
        command = f"mkdir -p {place} 2>/dev/null; exec mount -t bpf -o mode=700 bpf {place}"
        done = subprocess.run(
            ["nsenter", "--mount=/proc/1/ns/mnt", "sh", "-c", command],
            capture_output=True,
            text=True,
            check=False,
        )
        found = find_bpffs()
        if found:
            return found
        message = done.stderr.strip()
    raise KernelError(
        f"no BPF file system can be mounted: {message}",
        "Mount one with `mount -t bpf bpf /sys/fs/bpf`; it needs CONFIG_BPF_SYSCALL and CAP_SYS_ADMIN.",
    )


def directory(bpffs: Path, cookie: int) -> Path:
    """The private directory of one gateway's pins."""
    return bpffs / "enforcer" / f"{cookie:x}"
