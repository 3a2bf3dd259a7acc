"""Rules of other software that put connections into conntrack zones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lab.topology import Lab

# Seconds until sweeps look a silent flow up in conntrack, plus one sweep.
QUIET = 8.0


@contextlib.contextmanager
def zoned(lab: Lab, statement: str) -> Iterator[None]:
    """Apply an nftables statement to every packet before conntrack sees it."""
    lab.gw.run(
        "nft",
        "-f",
        "-",
        text=f"""
        table inet zones {{
          chain arriving {{
            type filter hook prerouting priority raw - 10
            {statement}
          }}
        }}""",
    )
    try:
        yield
    finally:
        lab.gw.run("nft", "delete table inet zones")
        lab.gw.run("conntrack", "-F")
