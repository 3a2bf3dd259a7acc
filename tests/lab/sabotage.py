"""Damage that other software may do to a gateway, as lines: commands, and ``unhook INTERFACE DIRECTION``."""

from __future__ import annotations

import ctypes
import os
import struct

import pytest

from enforcer.datapath import syscall, tcx
from enforcer.datapath.programs import Pins
from enforcer.gateway import attach
from enforcer.gateway.gateway import Gateway
from enforcer.instance import Instance
from enforcer.kernel import links
from enforcer.kernel.filters import Direction
from lab.netns import Namespace

_PROG_LOAD, _PROG_ATTACH, _SCHED_CLS = 5, 8, 3
_NEXT = -1
_MOST = 100


def sabotage(namespace: Namespace, line: str) -> None:
    """Execute the line in this namespace."""
    word, *rest = line.split()
    if word == "unhook":
        pins = Gateway(Instance(namespace.cookie())).pins
        namespace.call(lambda: _unhook(pins, *rest))  # type: ignore[arg-type]
    else:
        namespace.run(word, *rest)


def _unhook(pins: Pins, interface: str, direction: Direction) -> None:
    assert attach.detach(pins, links.links()[interface].index, direction)


def crowd(namespace: Namespace, interface: str, direction: Direction) -> None:
    """Attach other software's programs to a hook, as many as the kernel accepts."""
    if not tcx.supported():
        pytest.skip("this kernel lacks TCX (Linux 6.6)")
    namespace.call(lambda: _crowd(interface, direction))


def _crowd(interface: str, direction: Direction) -> None:
    index = links.links()[interface].index
    for number in range(_MOST):
        code = struct.pack("=BBhi", 0xB7, 0, 0, _NEXT) + struct.pack("=BBhi", 0x95, 0, 0, 0)
        parts = [ctypes.create_string_buffer(text) for text in (code, b"GPL")]
        where = [syscall.address(part) for part in parts]
        attributes = struct.pack("=IIQQIIQII16s", _SCHED_CLS, 2, *where, 0, 0, 0, 0, 0, b"other%d" % number)
        fd = syscall.call(_PROG_LOAD, attributes)
        try:
            syscall.call(_PROG_ATTACH, struct.pack("=3I", index, fd, tcx.ATTACH_TYPES[direction]))
        except OSError:
            return
        finally:
            os.close(fd)
    raise AssertionError(f"{interface} {direction} took {_MOST} programs")
