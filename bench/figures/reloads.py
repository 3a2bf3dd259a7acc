"""Switches between two generations of policies every 100 ms: run inside a gateway's namespace.

``python -m bench.figures.reloads POLICIES REGIONS`` compiles both, says "ready", switches until its standard
input ends, and prints when each switch was in force, in seconds since the first began, as JSON. A reload with
all that a user waits for takes longer than 100 ms; its switch is what packets could notice.
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
    """The policies of both: of the second, all but the last are in the opposite order, with the other egress.

    So a rule's number of one generation, taken as the other's, is another policy.
    """
    one = documents.policies(count)
    other = documents.swapped(one)
    ranks = [policy["precedence"] for policy in one[:-1]]
    turned = [policy | {"precedence": rank} for policy, rank in zip(other[:-1], reversed(ranks), strict=True)]
    return one, [*turned, other[-1]]


def main(count: int, regions: Path) -> None:
    """Until standard input ends."""
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
