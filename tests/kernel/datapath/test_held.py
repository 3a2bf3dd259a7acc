"""Tests of lost pins: held descriptors restore them, the kernel's ids identify links without a path."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcer.datapath import bpffs, syscall, tcx, unreachable_links
from enforcer.datapath.held_pins import HeldObjects
from enforcer.datapath.programs import Pins
from enforcer.errors import PrivilegeError
from enforcer.gateway import attach
from lab.netns import run

from ..kernel.test_filters import load

needs_tcx = pytest.mark.skipif(not tcx.supported(), reason="this kernel lacks TCX (Linux 6.6)")
DIRECTIONS: tuple[tcx.Direction, ...] = ("ingress", "egress")


@pytest.fixture
def directory() -> Iterator[Path]:
    made = bpffs.mount_bpffs() / f"enforcer-test-{os.getpid()}"
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def pins(directory: Path) -> Pins:
    """A directory with a pinned program and a pinned map."""
    made = Pins(directory)
    made.programs.mkdir(parents=True)
    fd = load(0)
    syscall.pin(fd, str(made.programs / "from_client"))
    os.close(fd)
    (directory / "maps-1").mkdir()
    fd = syscall.create_map(syscall.ARRAY, 4, 4, 1)
    syscall.pin(fd, str(directory / "maps-1/settings"))
    os.close(fd)
    return made


@pytest.fixture
def index(netns: str) -> int:
    run("ip link add in0 type veth peer name far0")
    run("ip link set in0 up")
    return socket.if_nametoindex("in0")


@pytest.fixture
def held(pins: Pins) -> Iterator[HeldObjects]:
    made = HeldObjects()
    take(made, pins)
    yield made
    made.close()


def take(held: HeldObjects, pins: Pins) -> None:
    held.hold(pins.directory, [pins.links, pins.programs, pins.directory / "maps-1"])


def identities(directory: Path) -> dict[str, int]:
    found = {}
    for path in directory.rglob("*"):
        if path.is_file():
            fd = syscall.get(str(path))
            found[str(path.relative_to(directory))] = syscall.object_id(fd)
            os.close(fd)
    return found


@pytest.mark.parametrize("what", ["programs/from_client", "maps-1/settings", "maps-1", ""])
def test_what_was_removed_is_pinned_again(pins: Pins, held: HeldObjects, what: str) -> None:
    before = identities(pins.directory)
    assert held.repin(pins.directory) == []
    place = pins.directory / what
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    assert set(held.repin(pins.directory)) == {name for name in before if name.startswith(what)}
    assert identities(pins.directory) == before
    assert held.repin(pins.directory) == []


def test_another_file_system_gets_pins_of_the_same_things(
    pins: Pins, held: HeldObjects, directory: Path
) -> None:
    elsewhere = directory / "elsewhere"
    assert len(held.repin(elsewhere)) == 2
    assert identities(elsewhere) == {
        name: number for name, number in identities(pins.directory).items() if "elsewhere" not in name
    }


def test_what_others_pinned_in_its_place_makes_room(pins: Pins, held: HeldObjects) -> None:
    before = identities(pins.directory)
    path = pins.directory / "maps-1/settings"
    path.unlink()
    fd = syscall.create_map(syscall.ARRAY, 4, 4, 1)
    syscall.pin(fd, str(path))
    os.close(fd)
    assert held.repin(pins.directory) == ["maps-1/settings"]
    assert identities(pins.directory) == before


def test_what_is_taken_later_is_let_go_of_before(pins: Pins, held: HeldObjects) -> None:
    path = pins.directory / "maps-1/settings"
    path.unlink()
    take(held, pins)
    assert held.repin(pins.directory) == []
    assert not path.exists()
    with pytest.raises(KeyError):
        held.open(Path("maps-1/settings"))


@needs_tcx
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_held_link_stays_at_its_hook(
    index: int, pins: Pins, held: HeldObjects, direction: tcx.Direction
) -> None:
    attach.attach(pins, index, direction, "from_client")
    take(held, pins)
    chain = tcx.chain(index, direction)
    assert len(chain) == 1
    shutil.rmtree(pins.links)
    assert held.repin(pins.directory) == [f"links/{index}-{direction}"]
    assert tcx.chain(index, direction) == chain
    assert attach.attached(pins, [index]) == {(index, direction): chain[0][0]}


@needs_tcx
def test_a_link_that_was_taken_off_is_not_pinned_again(index: int, pins: Pins, held: HeldObjects) -> None:
    attach.attach(pins, index, "ingress", "from_client")
    take(held, pins)
    attach.detach(pins, index, "ingress")
    assert held.repin(pins.directory) == []
    attach.attach(pins, index, "ingress", "from_client")
    before = identities(pins.directory)
    assert held.repin(pins.directory) == []
    assert identities(pins.directory) == before


# --- links without a path


@pytest.fixture
def out_of_reach(index: int, pins: Pins) -> Iterator[int]:
    """A link at the ingress of in0 that is pinned at another path; yields its program's id."""
    attach.attach(pins, index, "ingress", "from_client")
    aside = pins.directory / "aside"
    (pins.links / f"{index}-ingress").rename(aside)
    yield tcx.programs(index, "ingress")[0]
    aside.unlink(missing_ok=True)


def find(
    pins: Pins, index: int, *known: int, doubtful: bool = False
) -> list[unreachable_links.UnreachableLink]:
    return unreachable_links.find(tcx.link_ids(pins.links), [index], known, doubtful=doubtful)


@needs_tcx
def test_a_link_out_of_reach_is_found_by_its_programs_id(index: int, pins: Pins, out_of_reach: int) -> None:
    assert find(pins, index) == []  # a program without the enforcer's maps may be other software's
    (one,) = found = find(pins, index, out_of_reach)
    assert (one.interface, one.direction) == (index, "ingress")
    for place, fd in unreachable_links.open_links(found).items():
        tcx.pin_link(pins.links, place.interface, place.direction, fd)
        os.close(fd)
    assert attach.attached(pins, [index]) == {(index, "ingress"): out_of_reach}
    assert find(pins, index, out_of_reach) == []


@needs_tcx
def test_links_of_others_are_not_ours(index: int, pins: Pins) -> None:
    fd = load(0)
    link = tcx.link(index, "ingress", fd)
    assert find(pins, index, doubtful=True) == []
    os.close(link)
    os.close(fd)


@needs_tcx
def test_without_the_capability(
    index: int, pins: Pins, out_of_reach: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(command: int, identifier: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(syscall, "open_by_id", refuse)
    assert find(pins, index) == []
    with pytest.raises(PrivilegeError, match="out of reach"):
        find(pins, index, doubtful=True)
    with pytest.raises(PrivilegeError, match="out of reach"):
        unreachable_links.open_links(find(pins, index, out_of_reach))
