"""Regular expressions of policies: RE2, which searches in time linear in the text for every pattern.

Cloudflare uses Rust's regex crate, whose syntax is nearly the same. Patterns that RE2 would read differently
are refused: in a class, Rust supports `&&`, `--`, `~~` and nested classes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

MAX_PATTERN = 4096  # characters
MAX_MEMORY = 1 << 20  # bytes of RE2's compiled program and its search cache


class PatternError(ValueError):
    """RE2 does not accept the pattern: its syntax is wrong, or it needs too much memory."""


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> Any:
    """Return the compiled pattern, which has ``search(text)``; PatternError."""
    import re2  # the import takes 20 ms, and most configurations have no pattern

    options = re2.Options()
    options.max_mem = MAX_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except UnicodeEncodeError:
        raise PatternError("it has half of a surrogate pair in it") from None
    except re2.error as error:
        reason = error.args[0] if error.args else "it is refused"
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        if "too large" in text:
            text = f"it needs more than {MAX_MEMORY >> 20} MiB when compiled"
        raise PatternError(text) from None


def check(pattern: str) -> None:
    """Raise PatternError if a pattern does not compile, or means something else at Cloudflare."""
    if len(pattern) > MAX_PATTERN:
        raise PatternError(f"it is longer than {MAX_PATTERN:,} characters")
    _check_classes(pattern)
    compiled(pattern)


def _check_classes(pattern: str) -> None:
    """Refuse operators that Rust has inside of ``[…]`` and RE2 reads as plain characters."""
    inside, position = False, 0
    while position < len(pattern):
        if pattern[position] == "\\":
            position += 2
            continue
        if not inside:
            inside = pattern[position] == "["
            if inside:
                # The first ] is a member: []a], [^]a].
                position += pattern.startswith("^", position + 1)
                position += pattern.startswith("]", position + 1)
        elif pattern.startswith("[:", position):
            end = pattern.find(":]", position)
            position = end + 1 if end > 0 else position
        elif pattern[position] == "]":
            inside = False
        elif pattern[position] == "[" or pattern[position : position + 2] in ("&&", "--", "~~"):
            part = pattern[position] if pattern[position] == "[" else pattern[position : position + 2]
            raise PatternError(f"{part} inside of […] is not known; a backslash makes it plain")
        position += 1
