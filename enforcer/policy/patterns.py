"""Regular expressions of policies: RE2, whose search takes time linear in the text whatever the pattern.

Cloudflare's are those of Rust's regex crate, which are nearly the same. What RE2 would take for something
else is refused: in a class, Rust knows `&&`, `--`, `~~` and nested classes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

MAX_PATTERN = 4096  # characters
MAX_MEMORY = 1 << 20  # bytes of RE2's compiled program and of the cache that it searches with


class PatternError(ValueError):
    """What RE2 does not take: no syntax of its own, or more than its memory."""


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> Any:
    """Compile a pattern; PatternError. The result has ``search(text)``."""
    import re2  # takes 20 ms, which most policies do without

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
    """Refuse what cannot be compiled, or would mean something else than at Cloudflare; PatternError."""
    if len(pattern) > MAX_PATTERN:
        raise PatternError(f"it is longer than {MAX_PATTERN:,} characters")
    _check_classes(pattern)
    compiled(pattern)


def _check_classes(pattern: str) -> None:
    """Find what Rust has inside of ``[…]`` and RE2 takes for plain characters."""
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
