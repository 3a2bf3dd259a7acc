"""The bpf(2) calls that describe and recreate maps, programs and BTF (include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from enforcer.datapath import syscall

_MAP_CREATE, _PROG_LOAD, _OBJ_GET_INFO = 0, 5, 15
_BTF_LOAD, _BTF_GET_FD_BY_ID = 18, 19
_LOAD_DOUBLE, _PSEUDO_MAP = 0x18, 1


@dataclass(frozen=True)
class MapInformation:
    """``struct bpf_map_info``: the attributes of a map."""

    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int
    name: bytes
    btf: int
    key_type: int
    value_type: int


def map_information(fd: int) -> MapInformation:
    """The attributes of the map with this descriptor."""
    buffer = _information(fd, 88)
    kind, _, key, value, entries, flags, name = struct.unpack_from("<6I16s", buffer)
    return MapInformation(kind, key, value, entries, flags, name, *struct.unpack_from("<3I", buffer, 64))


def create_map(information: MapInformation, btf: int, inner: int) -> int:
    """A new map's descriptor; ``btf`` and ``inner`` are descriptors, or 0."""
    wanted = information
    return syscall.call(
        _MAP_CREATE,
        struct.pack(
            "<7I16s5I", wanted.kind, wanted.key_size, wanted.value_size, wanted.entries, wanted.flags,
            inner, 0, wanted.name, 0, btf, wanted.key_type, wanted.value_type, 0,
        ),
    )  # fmt: skip


def load_program(name: str, kind: int, instructions: bytes, license: bytes) -> int:
    """A loaded program's descriptor."""
    parts = [ctypes.create_string_buffer(part) for part in (instructions, license)]
    where = [syscall.address(part) for part in parts]
    attributes = struct.pack(
        "<2I2Q2IQ2I16s", kind, len(instructions) // 8, *where, 0, 0, 0, 0, 0, name.encode()[:15]
    )
    return syscall.call(_PROG_LOAD, attributes)


def btf(identifier: int) -> bytes:
    """The BTF with this id; empty for 0, which means no BTF."""
    if not identifier:
        return b""
    fd = syscall.call(_BTF_GET_FD_BY_ID, struct.pack("<I", identifier))
    try:
        (size,) = struct.unpack_from("<I", _information(fd, 16), 8)
        content = ctypes.create_string_buffer(size)
        _information(fd, 16, struct.pack("<QI", syscall.address(content), size))
    finally:
        os.close(fd)
    return content.raw


def load_btf(content: bytes) -> int:
    """Loads BTF; returns its descriptor."""
    buffer = ctypes.create_string_buffer(content, len(content))
    return syscall.call(_BTF_LOAD, struct.pack("<QQI", syscall.address(buffer), 0, len(content)))


def with_maps(instructions: bytes, maps: Mapping[int, int]) -> bytes:
    """The instructions with each map descriptor replaced by its value in ``maps``."""
    changed = bytearray(instructions)
    at = 0
    while at < len(changed):
        code, registers, _, value = struct.unpack_from("<BBhi", changed, at)
        if code == _LOAD_DOUBLE:
            if registers >> 4 == _PSEUDO_MAP:
                struct.pack_into("<i", changed, at + 4, maps[value])
            at += 8  # this instruction has two words
        at += 8
    return bytes(changed)


def _information(fd: int, size: int, content: bytes = b"") -> bytes:
    buffer = ctypes.create_string_buffer(content.ljust(size, b"\0"), size)
    syscall.call(_OBJ_GET_INFO, struct.pack("<IIQ", fd, size, syscall.address(buffer)))
    return buffer.raw
