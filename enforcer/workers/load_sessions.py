"""Loads a large file of sessions into the gateway of this network namespace.

It is a process (`python -m enforcer.workers.load_sessions FILE ORIGIN NAME [NOW]`), so that the daemon serves
requests meanwhile and its memory does not grow. Several processes parse the file in parallel. The result is
one JSON document on stdout: {"sessions": …, "changed": …} or {"error": …, "hint": …, "exit_code": …}.
"""

from __future__ import annotations

import gc
import json
import logging
import marshal
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from enforcer.control import log
from enforcer.control.protocol import report_of
from enforcer.errors import EnforcerError, KernelError
from enforcer.facts import loading, session
from enforcer.facts.session import Lines
from enforcer.facts.store import Store, stored

_log = logging.getLogger(__name__)

_MOST_READERS = 4
_AT_LEAST = 1 << 20
"""Minimum bytes per reader."""


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
    """(start, end, number of the first line) of each part; parts end at line ends."""
    readers = max(1, min(_MOST_READERS, len(os.sched_getaffinity(0)), len(content) // _AT_LEAST))
    start, line = 0, 1
    for index in range(1, readers + 1):
        end = content.find(b"\n", max(start, len(content) * index // readers)) + 1 or len(content)
        yield start, end, line
        line += content.count(b"\n", start, end) if index < readers else 0
        start = end


def _in_parallel(tasks: Sequence[Callable[[], bytes]]) -> list[bytes]:
    """The results of the tasks; forks of this process execute all but the last."""
    pipes = [_forked(task) for task in tasks[:-1]]
    last = tasks[-1]()
    results = []
    for pid, pipe in pipes:
        with open(pipe, "rb") as result:  # noqa: PTH123
            results.append(result.read())
        if os.waitpid(pid, 0)[1] != 0:
            raise EnforcerError("a process that parsed a part of the file failed")
    return [*results, last]


def _forked(task: Callable[[], bytes]) -> tuple[int, int]:
    pipe, sink = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sink)
        return pid, pipe
    code = 1
    try:
        os.close(pipe)
        os.close(1)  # the daemon takes the end of stdout for the parent's end
        with open(sink, "wb") as target:  # noqa: PTH123
            target.write(task())
        code = 0
    except BrokenPipeError:
        pass  # the parent was interrupted
    except BaseException:
        _log.exception("unexpected error")
    finally:
        os._exit(code)


def load_file(path: Path, origin: str, name: str, now: float | None) -> dict[str, Any]:
    """Reads the file and puts its sessions in force. Raises EnforcerError; a wrong file changes nothing."""
    rows = read(path, name, now)
    # numpy, which starts threads, is imported after the forks.
    from enforcer.facts.kernel_facts import KernelFacts
    from enforcer.gateway.reader import GatewayReader
    from enforcer.instance import Instance
    from enforcer.kernel.namespace import netns_cookie

    instance = Instance(netns_cookie())
    maps = GatewayReader(instance).maps
    with Store(instance.facts_file, create=False) as store:
        store.prepare_bulk_load()
        tables, room = KernelFacts(maps, store), maps.sessions.info.entries
        # From here on the load is not interrupted; before, the daemon may end it (WorkerProcess.interrupt).
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        found = loading.load(store, tables, [row[:3] for row in rows], origin, room)
    return loading.report(found)


def main(arguments: list[str]) -> int:
    """The entry point; arguments: FILE ORIGIN NAME [NOW]."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log.configure()
    # Objects live until the end: collecting garbage would find none.
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
    # Without cleanup: freeing 100,000 sessions' objects would take a tenth of the run time.
    os._exit(0 if "error" not in result else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
