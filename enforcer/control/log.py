"""Writes log lines of the daemon and of its worker processes to stderr, with level prefixes in the journal.

A line's level is its prefix ``<N>`` (sd-daemon(3)), which systemd strips and stores as the line's priority:
`journalctl -p warning` shows the lines of that level and above. On a terminal or in a file lines are plain.
"""

from __future__ import annotations

import logging
import os
import sys
from types import TracebackType

NOTICE = 25
"""Between INFO and WARNING: normal but significant (syslog(3), LOG_NOTICE)."""
logging.addLevelName(NOTICE, "NOTICE")

# syslog(3) priorities by the least log level; a record has the first one whose level it reaches.
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (NOTICE, 5),
    (logging.INFO, 6),
)
_DEBUG = 7
_STDERR = 2


def is_journal(descriptor: int = _STDERR) -> bool:
    """Whether the descriptor is the stream that JOURNAL_STREAM names, ``DEVICE:INODE`` (systemd.exec(5)).

    A process inherits the variable, but may have its stderr redirected: the variable alone proves nothing.
    """
    stream = os.environ.get("JOURNAL_STREAM")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def prefixed(text: str, level: int) -> str:
    """The text in the form for stderr: each line with the level's prefix if stderr is the journal."""
    if not is_journal():
        return text
    priority = next((priority for least, priority in _PRIORITIES if level >= least), _DEBUG)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return prefixed(super().format(record), record.levelno)


def configure() -> None:
    """Writes this process's log lines, and the traceback of an unexpected end, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("enforcer").setLevel(logging.INFO)
    sys.excepthook = _log_unexpected


def _log_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).critical("unexpected error", exc_info=(kind, error, trace))
