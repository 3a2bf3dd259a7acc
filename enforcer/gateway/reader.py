"""Read access to a gateway's state file and maps, without BCC; the nouns of the CLI use it."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from enforcer.datapath import bpffs
from enforcer.datapath.maps import Maps, no_file_system
from enforcer.datapath.programs import Pins
from enforcer.errors import PrivilegeError
from enforcer.gateway.state import State, lost_state
from enforcer.instance import Instance, not_installed
from enforcer.kernel import nft

SHARED = "shared"


def _has_table() -> bool:
    with suppress(PrivilegeError):
        return nft.installed() is not None
    return False


class GatewayReader:
    """The state and maps of one gateway.

    Raises NotInstalledError if nothing is enforced, KernelError if its state or maps are lost, and
    PrivilegeError.
    """

    def __init__(self, instance: Instance):
        state = State.load(instance.state_file)
        if state is None and _has_table():
            raise lost_state(instance.state_file)
        if state is None or not state.config:
            raise not_installed()
        mount = bpffs.find_bpffs()
        if mount is None:
            raise (
                no_file_system()
                if os.geteuid() == 0
                else PrivilegeError("the maps cannot be read", "Run as root.")
            )
        self.instance = instance
        self.state = state
        self.pins = Pins(bpffs.directory(mount, instance.cookie), state.loaded, state.maps)
        self.maps = Maps(self.pins.maps, state.layouts)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration in force in JSON form."""
        return self.state.config

    @cached_property
    def egress_names(self) -> dict[int, str]:
        """Egress IP names by slot."""
        return {0: SHARED} | {slot: name for name, slot in self.state.slots.items()}

    @cached_property
    def policy_names(self) -> dict[int, str]:
        """Policy names by id."""
        return {number: name for name, number in self.state.policies.items()}

    @cached_property
    def origins(self) -> tuple[np.ndarray, np.ndarray]:
        """The origins map: keys and values."""
        return self.maps.origins.items()

    @property
    def limit(self) -> int:
        """Connections per origin."""
        return int(self.config["limits"]["connections_per_origin"])
