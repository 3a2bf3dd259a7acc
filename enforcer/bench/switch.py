"""The policy switch alone, timed: run inside a gateway's namespace, prints seconds.

What `reload` does besides (starting Python, reading and checking the file, reading the kernel's state) can
take as long as it likes: packets don't notice. From the first map written to the one that decides, this is
what stands between two generations of policies.
"""

from __future__ import annotations

import time

from enforcer.apply import target
from enforcer.config import Configuration
from enforcer.errors import NotInstalledError
from enforcer.gateway import Gateway
from enforcer.instance import Instance
from enforcer.kernel.namespace import netns_cookie
from enforcer.plan import SwitchTables


def main() -> None:
    """Switches to the policies that are in force already."""
    instance = Instance(netns_cookie())
    with instance.change_lock():
        gateway = Gateway(instance)
        if gateway.state is None:
            raise NotInstalledError("nothing is enforced here")
        aim = target(
            Configuration.model_validate(gateway.state.config), gateway.state.config_file, gateway.state
        )
        began = time.monotonic()
        gateway.apply([SwitchTables()], aim.wanted, aim.contents, aim.state)
        print(time.monotonic() - began)


if __name__ == "__main__":
    main()
