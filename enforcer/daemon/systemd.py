"""What systemd is told, and what it asks for: sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(message: str) -> None:
    """Tells systemd (sd_notify(3)), if it started us."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)


def watchdog_interval() -> float | None:
    """Seconds between two signs of life that systemd asks for: half its limit."""
    microseconds = os.environ.get("WATCHDOG_USEC")
    return int(microseconds) / 2e6 if microseconds else None
