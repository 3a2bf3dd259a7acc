"""Tests of links that are renamed while the enforcer is upgraded to another layout of its maps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from test_links import asked, leaving, raw
from truth import foretold, leaves_from, look, running, wait_for
from versions import program_copy

from enforcer.inspect.warnings import warnings
from lab.clients import ping
from lab.configuration import LAX1
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, Lab


def another_layout(bpf: Path) -> None:
    """Any other text of maps.h makes new maps, even with the same fields."""
    maps = bpf / "maps.h"
    maps.write_text(maps.read_text() + "/* another version */\n")


def without_names(bpf: Path) -> None:
    """A layout in which the map of interfaces has no names yet."""
    maps = bpf / "maps.h"
    text, changed = re.subn(r"\tu8 name\[16\];[^\n]*\n", "", maps.read_text())
    assert changed == 1
    maps.write_text(text)


@pytest.mark.parametrize(
    ("layout", "before", "after"), [(another_layout, "out0", "wan0"), (without_names, "in0", "lan0")]
)
def test_renamed_before_an_upgrade(
    lab: Lab, services: Services, tmp_path: Path, layout: Callable[[Path], None], before: str, after: str
) -> None:
    """In the new maps the link keeps its role and its former name."""
    with running(lab, version=program_copy(tmp_path, layout)) as gateway, leaving(lab) as wire:
        assert "dedicated" in {
            foretold(gateway, ORIGIN1[family], "tcp", 9000)["verdict"] for family in (4, 6)
        }
        gateway.kill()
        # The file is invalid without an interface of that name, so another link takes it.
        lab.gw.ip(f"link set {before} name {after}", f"link add {before} type veth peer name far9")
        try:
            gateway.enforcer = gateway.enforcer[4:]
            gateway.argv = [*gateway.enforcer, "run"]
            gateway.start()
            assert any(f"{before} is called {after} now" in line for line in look(gateway, warnings))
            for family in (4, 6):
                assert asked(lab, family) == ["silence", "silence"]
                ping(lab.client, ORIGIN1[family], CLIENT[family])
                said = foretold(gateway, ORIGIN1[family], "tcp", 9000)
                assert said["verdict"] == "blocked", said
        finally:
            lab.gw.ip(f"link del {before}", f"link set {after} name {before}")
        wait_for(lambda: f"{before} has its name back" in gateway.said())
        for family in (4, 6):
            wait_for(lambda family=family: asked(lab, family) == [leaves_from(LAX1, family)] * 2)
    assert not raw(wire)
