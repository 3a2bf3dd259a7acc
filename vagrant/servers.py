#!/usr/bin/env python3
"""The lab's servers on the origin, each in its namespace: until SIGTERM, or until one of them ends.

One argument, the start of the namespaces' names (network.sh).
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from lab.netns import Namespace
from lab.program import Program, start_all
from lab.servers import Iperf, Nginx, QuicServer, Reporter, Unbound
from lab.services import REPORTED


def programs(prefix: str, directory: Path) -> list[Program]:
    """What lab.services has on the outside."""
    made: list[Program] = [Unbound(Namespace(f"{prefix}-resolver"), directory)]
    for role in ("origin1", "origin2", "private"):
        here = Namespace(f"{prefix}-{role}")
        made += [Nginx(here, directory), QuicServer(here, directory), Reporter(here, directory, REPORTED)]
        made.append(Iperf(here, directory))
    return made


def main(prefix: str) -> None:
    """Starts them, says ready, and waits."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    directory = Path("/run") / f"{prefix}-servers"
    directory.mkdir(exist_ok=True)
    servers = programs(prefix, directory)
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
        start_all(servers)
        print("ready", flush=True)
        while all(server.alive for server in servers):
            time.sleep(1)
    sys.exit(f"a server ended; see {directory}")


if __name__ == "__main__":
    main(sys.argv[1])
