"""Tests of attaching programs to an interface: TCX links, or filters of clsact without TCX."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator

import pytest

from enforcer.datapath import bpffs, syscall, tcx
from enforcer.datapath.programs import Pins
from enforcer.errors import KernelError
from enforcer.gateway import attach
from enforcer.kernel import filters
from lab.netns import run

from ..kernel.test_filters import load

needs_tcx = pytest.mark.skipif(not tcx.supported(), reason="this kernel lacks TCX (Linux 6.6)")
DIRECTIONS: tuple[tcx.Direction, ...] = ("ingress", "egress")


@pytest.fixture
def pins() -> Iterator[Pins]:
    """A directory with two pinned programs."""
    made = Pins(bpffs.mount_bpffs() / f"enforcer-test-{os.getpid()}")
    made.programs.mkdir(parents=True)
    for name, result in (("from_client", 0), ("to_client", 2)):
        fd = load(result)
        syscall.pin(fd, str(made.programs / name))
        os.close(fd)
    yield made
    shutil.rmtree(made.directory)


@pytest.fixture
def index(netns: str) -> int:
    run("ip link add in0 type veth peer name far0")
    run("ip link set in0 up")
    return socket.if_nametoindex("in0")


@needs_tcx
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_of_ours_is_replaced_in_place_and_others_stay(
    index: int, pins: Pins, direction: tcx.Direction
) -> None:
    ids = pins.program_ids()
    other = load(0)
    held = tcx.link(index, direction, other)
    for name in ("from_client", "to_client", "to_client"):
        attach.attach(pins, index, direction, name)
        assert tcx.programs(index, direction) == [ids[name], syscall.program_info(other)[0]]
        assert attach.attached(pins, [index]) == {(index, direction): ids[name]}
    assert attach.attached(pins, []) == {}
    assert attach.detach(pins, index, direction) is True
    assert attach.detach(pins, index, direction) is False
    assert tcx.programs(index, direction) == [syscall.program_info(other)[0]]
    os.close(held)
    deadline = time.monotonic() + 5  # the kernel frees links with a delay
    while tcx.programs(index, direction) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tcx.programs(index, direction) == []
    os.close(other)


@needs_tcx
def test_an_interface_that_is_made_again_has_no_program(index: int, pins: Pins) -> None:
    attach.attach(pins, index, "ingress", "from_client")
    run("ip link del in0")
    assert attach.attached(pins, [index]) == {}
    run(f"ip link add in0 index {index} type veth peer name far0")
    assert attach.attached(pins, [index]) == {}
    attach.attach(pins, index, "ingress", "from_client")
    assert attach.attached(pins, [index]) == {(index, "ingress"): pins.program_ids()["from_client"]}


@needs_tcx
def test_what_an_earlier_version_left_at_clsact_is_not_in_place(index: int, pins: Pins) -> None:
    filters.ensure_clsact(index)
    with pins.open("from_client") as program:
        filters.attach(index, "ingress", program, "enforcer/from_client")
    assert attach.attached(pins, [index]) == {(index, "ingress"): 0}
    assert attach.needs_qdisc(index) is False
    attach.attach(pins, index, "ingress", "to_client")
    assert attach.attached(pins, [index]) == {(index, "ingress"): pins.program_ids()["to_client"]}
    assert filters.attached(index) == []


def test_without_tcx_programs_are_filters_of_clsact(
    index: int, pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcx, "supported", lambda: False)
    assert attach.needs_qdisc(index) is True
    filters.ensure_clsact(index)
    assert attach.needs_qdisc(index) is False
    attach.attach(pins, index, "egress", "to_client")
    assert attach.attached(pins, [index]) == {(index, "egress"): pins.program_ids()["to_client"]}
    (entry,) = filters.attached(index)
    assert entry.name == "enforcer/to_client"
    assert attach.detach(pins, index, "egress") is True
    assert filters.remove_clsact(index) is True


@needs_tcx
def test_errors_name_the_operation(netns: str, pins: Pins) -> None:
    with pytest.raises(KernelError, match="attaching a program to ingress of interface 9999"):
        attach.attach(pins, 9999, "ingress", "from_client")
