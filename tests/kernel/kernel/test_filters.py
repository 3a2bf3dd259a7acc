"""Tests of programs as filters of clsact."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import struct
from collections.abc import Iterator

import pytest

from enforcer.errors import BusyError, KernelError
from enforcer.kernel import filters
from lab.netns import run

NR_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
SCHED_CLS = 3
FOREIGN = "bpf bytecode '1,6 0 0 0,'"


def load(result: int) -> int:
    """Loads a TC program that returns ``result``; returns its descriptor."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, result) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    attribute = struct.pack("=IIQQ", SCHED_CLS, 2, ctypes.addressof(instructions), ctypes.addressof(licence))
    buffer = ctypes.create_string_buffer(attribute.ljust(128, b"\0"))
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(NR_BPF, 5, buffer, 128)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    return int(descriptor)


@pytest.fixture
def programs() -> Iterator[tuple[int, int]]:
    two = load(0), load(2)
    yield two
    for descriptor in two:
        os.close(descriptor)


@pytest.fixture
def index(netns: str) -> int:
    run("ip link add in0 type veth peer name far0")
    run("ip link set in0 up")
    return socket.if_nametoindex("in0")


def test_clsact_twice(index: int) -> None:
    assert filters.attached(index) == []
    assert filters.ensure_clsact(index) is True
    assert filters.ensure_clsact(index) is False
    assert "clsact" in run("tc qdisc show dev in0")
    assert filters.remove_clsact(index) is True
    assert filters.remove_clsact(index) is False
    assert "clsact" not in run("tc qdisc show dev in0")


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_attach_replaces_in_place(
    index: int, programs: tuple[int, int], direction: filters.Direction
) -> None:
    filters.ensure_clsact(index)
    seen = set()
    for program in (*programs, programs[1]):
        filters.attach(index, direction, program, "enforcer/from_client")
        (entry,) = filters.attached(index)
        assert (entry.direction, entry.priority, entry.handle) == (direction, 1, 1)
        assert (entry.kind, entry.name, entry.ours) == ("bpf", "enforcer/from_client", True)
        shown = json.loads(run(f"tc -j filter show dev in0 {direction}"))[-1]["options"]
        assert shown["direct-action"] is True
        assert (shown["prog"]["id"], shown["prog"]["tag"]) == (entry.program, entry.tag)
        seen.add(entry.program)
    assert len(seen) == 2
    assert filters.remove_clsact(index) is False
    assert filters.detach(index, direction) == [entry]
    assert filters.detach(index, direction) == []
    assert filters.remove_clsact(index) is True


def test_other_peoples_filters_stay(index: int, programs: tuple[int, int]) -> None:
    filters.ensure_clsact(index)
    run(f"tc filter add dev in0 ingress prio 7 protocol all {FOREIGN}")
    filters.attach(index, "ingress", programs[0], "enforcer/from_client")
    assert [(entry.kind, entry.ours) for entry in filters.attached(index)] == [("bpf", True), ("bpf", False)]
    filters.detach(index, "ingress")
    assert filters.remove_clsact(index) is False
    assert [(entry.kind, entry.priority) for entry in filters.attached(index)] == [("bpf", 7)]


def test_a_taken_priority_is_refused(index: int, programs: tuple[int, int]) -> None:
    filters.ensure_clsact(index)
    run(f"tc filter add dev in0 ingress prio 1 protocol all {FOREIGN}")
    before = run("tc filter show dev in0 ingress")
    with pytest.raises(BusyError, match="another program's filter"):
        filters.attach(index, "ingress", programs[0], "enforcer/from_client")
    assert run("tc filter show dev in0 ingress") == before


def test_an_ingress_qdisc_in_the_way(index: int) -> None:
    run("tc qdisc add dev in0 ingress")
    with pytest.raises(BusyError, match="ingress"):
        filters.ensure_clsact(index)
    assert filters.remove_clsact(index) is False


def test_errors_name_the_operation(index: int, programs: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="enforcer/"):
        filters.attach(index, "ingress", programs[0], "mine")
    with pytest.raises(KernelError, match="attaching enforcer/x to egress"):
        filters.attach(index, "egress", programs[0], "enforcer/x")
    with pytest.raises(KernelError, match="clsact"):
        filters.ensure_clsact(9999)
