"""Loads a large file of sessions into the gateway of this network namespace.

Run as a process of its own (`python -m enforcer.workers.load_sessions FILE ORIGIN NAME [NOW]`), so that the
daemon serves others meanwhile and gives no memory to it. Several processes read the file at once. The result
is one JSON document on stdout: {"sessions": …, "changed": …} or {"error": …, "hint": …, "exit_code": …}.
"""

from __future__ import annotations

import gc
import json
import marshal
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from enforcer.control.protocol import report_of
from enforcer.errors import EnforcerError, KernelError
from enforcer.facts import loading, session
from enforcer.facts.session import Lines
from enforcer.facts.store import Store, stored

_MOST_READERS = 4
_AT_LEAST = 1 << 20
"""Bytes for which a reader of its own is worth while."""


def read(path: Path, name: str, now: float | None) -> list[session.Row]:
    """The file's sessions in their stored form. Raises ConfigError."""
    content, changed = session.content_of(path, name)
    begin = changed if now is None else now
    found = _in_parallel([partial(_read, content, *part, begin) for part in _parts(content)])
    rows: list[session.Row] = []
    faults: list[tuple[int, str]] = []
    for some, wrong in map(marshal.loads, found):
        rows += some
        faults += wrong
    return session.united(name, rows, faults)


def _read(content: bytes, start: int, end: int, first: int, now: float) -> bytes:
    lines = Lines(now, first, keep=stored)
    lines.read(content[start:end])
    return marshal.dumps((lines.rows, lines.faults))


def _parts(content: bytes) -> Iterator[tuple[int, int, int]]:
    """The content cut at ends of lines: where each part begins and ends, and the number of its first line."""
    readers = max(1, min(_MOST_READERS, len(os.sched_getaffinity(0)), len(content) // _AT_LEAST))
    start, line = 0, 1
    for index in range(1, readers + 1):
        end = content.find(b"\n", max(start, len(content) * index // readers)) + 1 or len(content)
        yield start, end, line
        line += content.count(b"\n", start, end) if index < readers else 0
        start = end


def _in_parallel(works: Sequence[Callable[[], bytes]]) -> list[bytes]:
    """What each of the works gives; all but the last are done by a fork of this process."""
    pipes = [_forked(work) for work in works[:-1]]
    last = works[-1]()
    results = []
    for pid, pipe in pipes:
        with open(pipe, "rb") as source:  # noqa: PTH123
            results.append(source.read())
        if os.waitpid(pid, 0)[1] != 0:
            raise EnforcerError("a process that read a part of the file did not end well")
    return [*results, last]


def _forked(work: Callable[[], bytes]) -> tuple[int, int]:
    pipe, sink = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sink)
        return pid, pipe
    code = 1
    try:
        os.close(pipe)
        os.close(1)  # its end is the end of the process that forked this one
        with open(sink, "wb") as target:  # noqa: PTH123
            target.write(work())
        code = 0
    except BrokenPipeError:
        pass  # who would read it was interrupted
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def load_file(path: Path, origin: str, name: str, now: float | None) -> dict[str, Any]:
    """Reads the file and puts its sessions in force. Raises EnforcerError; a wrong file changes nothing."""
    rows = read(path, name, now)
    # numpy with its threads only now, behind the forks.
    from enforcer.facts.kernel_facts import KernelFacts
    from enforcer.gateway.reader import GatewayReader
    from enforcer.instance import Instance
    from enforcer.kernel.namespace import netns_cookie

    instance = Instance(netns_cookie())
    maps = GatewayReader(instance).maps
    with Store(instance.facts_file, create=False) as store:
        store.expect_much()
        tables, room = KernelFacts(maps, store), maps.sessions.info.entries
        # From here on the whole file is loaded; before, the daemon may end this (WorkerProcess.interrupt).
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        found = loading.load(store, tables, [row[:3] for row in rows], origin, room)
    return loading.report(found)


def main(arguments: list[str]) -> int:
    """The process's entry."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nothing of what is read goes before the end.
    gc.disable()
    file, origin, name = arguments[:3]
    try:
        result = load_file(Path(file), origin, name, float(arguments[3]) if arguments[3:] else None)
    except EnforcerError as error:
        result = report_of(error)
    except OSError as error:
        result = report_of(KernelError(f"loading {name}: {error}"))
    json.dump(result, sys.stdout)
    sys.stdout.flush()
    # Tidying up 100,000 sessions' objects would take as long as a tenth of the rest.
    os._exit(0 if "error" not in result else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
