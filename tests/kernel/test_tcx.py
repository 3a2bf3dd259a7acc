from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from enforcer import hooks
from enforcer.datapath import syscall, tcx
from enforcer.errors import KernelError
from enforcer.kernel import filters

from .conftest import run
from .test_filters import load

pytestmark = pytest.mark.skipif(not tcx.supported(), reason="this kernel lacks TCX (Linux 6.6)")
DIRECTIONS: tuple[tcx.Direction, ...] = ("ingress", "egress")


@pytest.fixture
def programs() -> Iterator[tuple[int, int, int]]:
    three = load(0, "from_client"), load(2, "from_client"), load(0, "somebody")
    yield three
    for descriptor in three:
        os.close(descriptor)


@pytest.fixture
def index(netns: str) -> int:
    run("ip link add in0 type veth peer name far0")
    run("ip link set in0 up")
    return socket.if_nametoindex("in0")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_of_ours_is_replaced_in_place_and_others_stay(
    index: int, programs: tuple[int, int, int], direction: tcx.Direction
) -> None:
    ids = [syscall.program_info(program)[0] for program in programs]
    tcx.attach(index, direction, programs[2], ())
    for program in (programs[0], programs[1], programs[1]):
        tcx.attach(index, direction, program, ["from_client"])
        assert [one.name for one in tcx.attached(index)] == ["from_client", "somebody"]
    assert [one.id for one in tcx.attached(index)] == [ids[1], ids[2]]
    assert [one.id for one in tcx.detach(index, direction, ["from_client"])] == [ids[1]]
    assert tcx.detach(index, direction, ["from_client"]) == []
    assert [(one.direction, one.name) for one in tcx.attached(index)] == [(direction, "somebody")]


def test_what_an_earlier_version_left_at_clsact_is_not_in_place(
    index: int, programs: tuple[int, int, int]
) -> None:
    filters.ensure_clsact(index)
    filters.attach(index, "ingress", programs[0], "enforcer/from_client")
    assert hooks.attached(index) == {"ingress": 0}
    assert hooks.prepare(index) is False
    hooks.attach(index, "ingress", programs[1], "from_client")
    assert hooks.attached(index) == {"ingress": syscall.program_info(programs[1])[0]}
    assert filters.attached(index) == []
    assert hooks.detach(index, "ingress") is True
    assert hooks.detach(index, "ingress") is False


def test_without_tcx_programs_are_filters_of_clsact(
    index: int, programs: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcx, "supported", lambda: False)
    assert hooks.prepare(index) is True
    assert hooks.prepare(index) is False
    hooks.attach(index, "egress", programs[0], "to_origin")
    assert hooks.attached(index) == {"egress": syscall.program_info(programs[0])[0]}
    (entry,) = filters.attached(index)
    assert entry.name == "enforcer/to_origin"
    assert hooks.detach(index, "egress") is True
    assert filters.remove_clsact(index) is True


def test_errors_name_the_operation(netns: str, programs: tuple[int, int, int]) -> None:
    with pytest.raises(KernelError, match="interface 9999"):
        tcx.attach(9999, "ingress", programs[0], ())
