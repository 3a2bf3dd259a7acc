"""Regular expressions of policies: RE2, whose search takes time linear in the text whatever the pattern."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

MAX_PATTERN = 1024  # characters
MAX_MEMORY = 1 << 20  # bytes of RE2's compiled program and of the cache that it searches with


class PatternError(ValueError):
    """What RE2 does not take: no syntax of its own, or more than its memory."""


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Any:
    """Compile a pattern; PatternError."""
    import re2  # takes 20 ms, which most policies do without

    options = re2.Options()
    options.max_mem = MAX_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "is refused"
        if isinstance(reason, bytes):
            reason = reason.decode("utf-8", "replace")
        raise PatternError(str(reason)) from None
