"""The daemon: applies the configuration file and keeps the kernel in that state.

Only DNS answers wait for it (enforcer/dns/); all other packets are handled in the kernel.

One thread runs one loop (loop.py): signals, the control socket, events of the kernel and of files, expiry of
sessions, sweeps. Work that takes long, or needs the compiler or the configuration's models, runs in worker
processes (enforcer/workers/), and the loop continues meanwhile.
"""

from enforcer.daemon.daemon import Daemon

__all__ = ["Daemon"]
