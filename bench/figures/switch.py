"""A program inside a gateway's namespace that times compiling policies and switching to them.

The other work of `reload` (starting Python, reading and checking the file, reading the kernel's state) does
not affect packets, so it is not timed. The program prints JSON, in seconds: {"compile": from the texts to
tables, with empty parser caches; "switch": from the first map written to the one that puts them in force}.
"""

from __future__ import annotations

import json
import time

from enforcer.config import Configuration
from enforcer.errors import NotInstalledError
from enforcer.gateway.compiled_config import CompiledConfig, compile_config
from enforcer.gateway.gateway import Gateway
from enforcer.gateway.operations import (
    SwitchTables,
)
from enforcer.instance import Instance
from enforcer.kernel.namespace import netns_cookie
from enforcer.policy.language import parse
from enforcer.policy.patterns import compiled
from enforcer.policy.rules import rules_of


def gateway_here() -> Gateway:
    """The gateway of this namespace. Raises NotInstalledError."""
    gateway = Gateway(Instance(netns_cookie()))
    if gateway.state is None:
        raise NotInstalledError("nothing is enforced here")
    return gateway


def compiled_for(gateway: Gateway, config: Configuration) -> CompiledConfig:
    """The configuration, compiled for the gateway."""
    assert gateway.state is not None
    return compile_config(config, gateway.state.config_file, gateway.state)


def switch(gateway: Gateway, target: CompiledConfig) -> None:
    """Carries out the switch alone, without the other operations of a reload."""
    gateway.apply([SwitchTables()], target.wanted, target.contents, target.state)


def main() -> None:
    """Compiles the policies that are in force and switches to them."""
    gateway = gateway_here()
    with gateway.instance.change_lock():
        assert gateway.state is not None
        config = Configuration.model_validate(gateway.state.config)
        for cached in (parse, rules_of, compiled):  # reading the configuration has filled these caches
            cached.cache_clear()
        began = time.monotonic()
        wanted = compiled_for(gateway, config)
        ready = time.monotonic()
        switch(gateway, wanted)
        done = time.monotonic()
    print(json.dumps({"compile": ready - began, "switch": done - ready}))


if __name__ == "__main__":
    main()
