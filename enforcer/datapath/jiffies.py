"""Reads jiffies, the kernel's tick count, by which fast-path entries expire.

No file or system call provides it, so a small BPF program reads it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time

from enforcer.datapath import syscall

_PROG_LOAD, _SCHED_CLS = 5, 3  # enum bpf_cmd, enum bpf_prog_type
_CALL, _EXIT, _JIFFIES64 = 0x85, 0x95, 118  # BPF_JMP | BPF_CALL, BPF_JMP | BPF_EXIT, bpf_jiffies64()
_INSTRUCTION = struct.Struct("=BBhi")
_ETHERNET_HEADER = bytes(14)
_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h

TICK = time.clock_getres(_CLOCK_MONOTONIC_COARSE)
"""Seconds per jiffy: the resolution of that clock is one tick."""


def jiffies() -> int:
    """The low 32 bits of bpf_jiffies64(), read by a two-instruction program. Raises KernelError."""
    code = _INSTRUCTION.pack(_CALL, 0, 0, _JIFFIES64) + _INSTRUCTION.pack(_EXIT, 0, 0, 0)
    program, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    where = syscall.address(program), syscall.address(license_)
    count = len(code) // _INSTRUCTION.size
    try:
        fd = syscall.call(_PROG_LOAD, struct.pack("<IIQQ", _SCHED_CLS, count, *where))
        try:
            return syscall.test_run(fd, _ETHERNET_HEADER)[0]
        finally:
            os.close(fd)
    except OSError as error:
        raise syscall.explain_error(error, "asking the kernel for its ticks") from error
