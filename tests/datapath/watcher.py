"""A reader of the mark and priority of outgoing packets, which are not part of a frame."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

from enforcer.datapath import syscall

_SO_ATTACH_BPF = 50
_PROG_LOAD = 5
_SOCKET_FILTER = 1
_MARK, _PRIORITY = 8, 32  # offsets in struct __sk_buff
_LOAD, _AND, _SHIFT, _ADD, _EXIT = 0x61, 0x57, 0x77, 0x07, 0x95
_FIRST = 60
_IPV4, _IPV6 = 0x0800, 0x86DD


def _instruction(code: int, registers: int, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, value)


def _program(offset: int, shift: int) -> int:
    """A socket filter that truncates a packet to _FIRST bytes plus the value of one byte of a field."""
    code = (
        _instruction(_LOAD, 0x10, offset)
        + _instruction(_SHIFT, 0, 0, shift)
        + _instruction(_AND, 0, 0, 0xFF)
        + _instruction(_ADD, 0, 0, _FIRST)
        + _instruction(_EXIT, 0)
    )
    text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    return syscall.call(
        _PROG_LOAD,
        struct.pack(
            "<IIQQ", _SOCKET_FILTER, len(code) // 8, ctypes.addressof(text), ctypes.addressof(licence)
        )
        + bytes(24 + 16 + 64),
    )


class Watcher:
    """The first and last byte of the mark, and the priority, of each packet that leaves by an interface."""

    def __init__(self, interface: str):
        self._sockets = []
        for offset, shift in ((_MARK, 24), (_MARK, 0), (_PRIORITY, 0)):
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            made.bind((interface, 3))
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            program = _program(offset, shift)
            made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program)
            os.close(program)
            self._sockets.append(made)

    def taken(self) -> list[tuple[int, ...]]:
        """The three values of each TCP and UDP packet since the last call, in the order of the packets."""
        return list(zip(*(self._taken(each) for each in self._sockets), strict=True))

    @staticmethod
    def _taken(end: socket.socket) -> list[int]:
        found: list[int] = []
        while True:
            try:
                frame, where = end.recvfrom(2048)
            except BlockingIOError:
                return found
            protocol = frame[23] if where[1] == _IPV4 else frame[20] if where[1] == _IPV6 else 0
            if where[2] == socket.PACKET_OUTGOING and protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                found.append(len(frame) - _FIRST)

    def close(self) -> None:
        for each in self._sockets:
            each.close()
