"""The daemon: applies the file, then keeps it so. Never in a packet's way.

One thread, one loop (loop.py): signals, the control socket, events of the kernel and of files, sessions'
expiry, and a sweep now and then. What needs the compiler or the configuration's models runs in a process of
its own (enforcer/workers/apply.py), as does what would take long; the loop goes on meanwhile.
"""

from enforcer.daemon.daemon import Daemon

__all__ = ["Daemon"]
