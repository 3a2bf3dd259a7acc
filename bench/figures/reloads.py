"""A program inside a gateway's namespace that switches between two generations of policies every 100 ms.

``python -m bench.figures.reloads POLICIES REGIONS`` compiles both and prints "ready". It switches until its
standard input is readable, then prints as JSON when each switch was in force, in seconds since the first one
began. A complete reload takes longer than 100 ms; the switch is the part of it that can affect packets.
"""

from __future__ import annotations

import json
import select
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

from bench.figures.switch import compiled_for, gateway_here, switch
from bench.rig import documents
from enforcer.config import Configuration

EVERY = 0.1


def generations(count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The policies of both; in the second, all but the last are in reverse order, with the other egress.

    So a rule number of one generation means another policy in the other generation.
    """
    one = documents.policies(count)
    other = documents.swapped(one)
    ranks = [policy["precedence"] for policy in one[:-1]]
    turned = [policy | {"precedence": rank} for policy, rank in zip(other[:-1], reversed(ranks), strict=True)]
    return one, [*turned, other[-1]]


def main(count: int, regions: Path) -> None:
    """Switches until standard input is readable."""
    gateway = gateway_here()
    with gateway.instance.change_lock():
        aims = [
            compiled_for(gateway, Configuration.model_validate(documents.located(policies, regions)))
            for policies in generations(count)
        ]
        print("ready", flush=True)
        done = []
        began = time.monotonic()
        for number, wanted in enumerate(cycle(reversed(aims))):
            switch(gateway, wanted)
            done.append(time.monotonic() - began)
            rest = max(0.0, (number + 1) * EVERY - done[-1])
            if select.select([sys.stdin], [], [], rest)[0]:
                break
    print(json.dumps(done))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
