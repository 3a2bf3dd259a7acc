"""bpf(2) through ctypes, without BCC and its 150 MB of compiler.

Attribute layouts: ``union bpf_attr`` in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

from enforcer.errors import KernelError, PrivilegeError

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_ATTRIBUTE_SIZE = 144
_PROGRAM_MAPS = 64  # MAX_USED_MAPS of include/linux/bpf_verifier.h

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE = 0, 1, 2, 3
OBJ_PIN, OBJ_GET, PROG_TEST_RUN, OBJ_GET_INFO, PROG_QUERY = 6, 7, 10, 15, 16
PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID, LINK_GET_FD_BY_ID = 13, 14, 30
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34
MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = 24, 26, 27

ANY, NOEXIST, EXIST = 0, 1, 2

HASH, ARRAY, PERCPU_ARRAY, LPM_TRIE, ARRAY_OF_MAPS = 1, 2, 6, 11, 12
F_NO_PREALLOC, F_INNER_MAP = 1, 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attributes: bytes | bytearray) -> int:
    """Calls bpf(2); ``attributes`` is padded with zeros. Raises OSError."""
    buffer = (ctypes.c_char * _ATTRIBUTE_SIZE).from_buffer(
        attributes
        if isinstance(attributes, bytearray)
        else bytearray(attributes.ljust(_ATTRIBUTE_SIZE, b"\0"))
    )
    result = int(_libc.syscall(_SYSCALL[platform.machine()], command, buffer, _ATTRIBUTE_SIZE))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def explain_error(error: OSError, doing: str) -> KernelError | PrivilegeError:
    """The EnforcerError for an OSError of bpf(2)."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeError(
            f"{doing}: not permitted", "Run as root, or with the capabilities in packaging/enforcer.service."
        )
    if error.errno == errno.ENOSYS:
        return KernelError(
            f"{doing}: this kernel has no BPF", "A kernel with CONFIG_BPF_SYSCALL=y is needed."
        )
    return KernelError(f"{doing}: {error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})")


def address(buffer: object) -> int:
    """The address of a ctypes buffer."""
    return ctypes.addressof(buffer)  # type: ignore[arg-type]


def pin(fd: int, path: str) -> None:
    """Pins a map, program or link. Raises OSError."""
    name = ctypes.create_string_buffer(path.encode())
    call(OBJ_PIN, struct.pack("<QII", address(name), fd, 0))


def get(path: str) -> int:
    """A file descriptor of the object pinned at ``path``. Raises OSError."""
    name = ctypes.create_string_buffer(path.encode())
    return call(OBJ_GET, struct.pack("<QII", address(name), 0, 0))


def open_by_id(command: int, identifier: int) -> int:
    """A file descriptor by id; ``command`` is a …_GET_FD_BY_ID. Needs CAP_SYS_ADMIN. Raises OSError."""
    return call(command, struct.pack("<I", identifier))


def create_map(kind: int, key_size: int, value_size: int, entries: int, flags: int = 0) -> int:
    """The file descriptor of a new map. Raises OSError."""
    return call(MAP_CREATE, struct.pack("<IIIII", kind, key_size, value_size, entries, flags))


@dataclass(frozen=True)
class MapInfo:
    """Properties of a map (``struct bpf_map_info``)."""

    kind: int
    id: int
    key_size: int
    value_size: int
    entries: int
    flags: int


def _info(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    call(OBJ_GET_INFO, struct.pack("<IIQ", fd, size, address(buffer)))
    return buffer.raw


def object_id(fd: int) -> int:
    """The id of a map, program or link; ids are separate for each kind."""
    return int(struct.unpack_from("<I", _info(fd, 8), 4)[0])


def map_name(fd: int) -> str:
    """The first 15 characters of a map's name."""
    return _name(_info(fd, 88), 24)


def map_info(fd: int) -> MapInfo:
    """The properties of a map."""
    return MapInfo(*struct.unpack_from("<6I", _info(fd, 88)))


def program_info(fd: int) -> tuple[int, str]:
    """A program's id and tag (16 hexadecimal digits)."""
    _, identifier, tag = struct.unpack_from("<II8s", _info(fd, 232))
    return identifier, tag.hex()


def program_name(fd: int) -> str:
    """The first 15 characters of a program's name."""
    return _name(_info(fd, 232), 64)


def program_maps(fd: int) -> list[int]:
    """Ids of the maps that a program uses."""
    identifiers = (ctypes.c_uint32 * _PROGRAM_MAPS)()
    buffer = bytearray(232)
    struct.pack_into("<IQ", buffer, 52, _PROGRAM_MAPS, address(identifiers))
    information = ctypes.create_string_buffer(bytes(buffer), len(buffer))
    call(OBJ_GET_INFO, struct.pack("<IIQ", fd, len(buffer), address(information)))
    (count,) = struct.unpack_from("<I", information.raw, 52)
    return list(identifiers[:count])


def _name(information: bytes, offset: int) -> str:
    return information[offset : offset + 16].partition(b"\0")[0].decode(errors="replace")


def link_info(fd: int) -> tuple[int, int, int]:
    """``struct bpf_link_info`` of a TCX link: program id, interface (0: removed or detached), attach type."""
    program, interface, kind = struct.unpack_from("<8xI4xII", _info(fd, 64))
    return program, interface, kind


def test_run(
    fd: int, data: bytes, *, ifindex: int = 0, mark: int = 0, control: int = 0, repeat: int = 1
) -> tuple[int, bytes, int]:
    """BPF_PROG_TEST_RUN of a TC program: (return value, resulting packet, nanoseconds per run).

    ``ifindex`` is the packet's ingress interface, ``control`` is its cb[0].
    """
    packet_in = ctypes.create_string_buffer(data, len(data))
    packet_out = ctypes.create_string_buffer(len(data) + 256)
    context = bytearray(192)  # struct __sk_buff: mark at 8, ifindex at 40, cb at 48
    struct.pack_into("<I", context, 8, mark)
    struct.pack_into("<I", context, 40, ifindex)
    struct.pack_into("<I", context, 48, control)
    context_in = ctypes.create_string_buffer(bytes(context), len(context))
    attributes = bytearray(_ATTRIBUTE_SIZE)
    struct.pack_into(
        "<IIIIQQIIIIQQ", attributes, 0,
        fd, 0, len(data), len(packet_out), address(packet_in), address(packet_out),
        repeat, 0, len(context), 0, address(context_in), 0,
    )  # fmt: skip
    call(PROG_TEST_RUN, attributes)
    result, _, size = struct.unpack_from("<III", attributes, 4)
    (duration,) = struct.unpack_from("<I", attributes, 36)
    return result, packet_out.raw[:size], duration
