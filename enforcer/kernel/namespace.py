"""The network namespace of this process: entering one by name, and its cookie.

Standard library only: commands use this first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from pathlib import Path

from enforcer.errors import KernelError, PrivilegeError, UsageError

RUN_NETNS = Path("/run/netns")  # ip-netns(8)
CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14


def enter(name: str) -> None:
    """Moves this process into the network namespace ``name`` (of ``ip netns``, or a path).

    Mounts stay, unlike with ``ip netns exec``, whose own /sys would hide the bpffs. It moves the calling
    thread and threads started later. Raises UsageError, PrivilegeError, KernelError.
    """
    path = Path(name) if "/" in name else RUN_NETNS / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        hint = f"there are: {', '.join(names())}" if names() else "`ip netns list` shows none"
        raise UsageError(f"there is no network namespace {name} ({path})", hint) from error
    except OSError as error:
        raise UsageError(f"cannot open the network namespace {name} ({path}): {error.strerror}") from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET):
            _refused(name, path, ctypes.get_errno())
    finally:
        os.close(descriptor)


def _refused(name: str, path: Path, code: int) -> None:
    if code == errno.EPERM:
        message = f"entering the network namespace {name}: {os.strerror(code)}"
        raise PrivilegeError(message, "run it as root: this needs CAP_SYS_ADMIN")
    if code == errno.EINVAL:
        raise UsageError(f"{path} is not a network namespace")
    raise KernelError(f"entering the network namespace {name}: {os.strerror(code)}")


def names() -> list[str]:
    """Names of the named network namespaces, sorted."""
    try:
        return sorted(entry.name for entry in RUN_NETNS.iterdir())
    except OSError:
        return []


def netns_cookie() -> int:
    """The cookie of this process's network namespace: 64 bits, unique until the next boot."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        try:
            value = any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError as error:
            message = f"reading the network namespace's cookie: {error.strerror}"
            raise KernelError(message, "this needs Linux 5.14 or later") from error
    (cookie,) = struct.unpack("=Q", value)
    return int(cookie)
