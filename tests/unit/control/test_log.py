"""Log lines: levels as sd-daemon(3) prefixes if stderr is the journal, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = r"""
import logging
from enforcer.control import log
log.configure()
lines = logging.getLogger("enforcer.test")
lines.debug("a debug line")
lines.info("an info line")
lines.log(log.NOTICE, "a notice")
lines.warning("a warning\nof two lines, 100%")
lines.error("an error \udcff")
logging.getLogger("pyroute2").warning("a library's warning")
raise RuntimeError("a bug")
"""


def run(*, stderr: int, code: str = CODE, **environment: str) -> None:
    """Runs the code with the descriptor as its stderr."""
    inherited = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    subprocess.run([sys.executable, "-c", code], stderr=stderr, env=inherited | environment, check=False)


def stream(descriptor: int) -> str:
    """The value of JOURNAL_STREAM for this descriptor."""
    found = os.fstat(descriptor)
    return f"{found.st_dev}:{found.st_ino}"


def test_levels_are_prefixes_in_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as journal:
        run(stderr=journal.fileno(), JOURNAL_STREAM=stream(journal.fileno()))
        lines = (tmp_path / "journal").read_text().splitlines()
    assert lines[:6] == [
        "<6>an info line",
        "<5>a notice",
        "<4>a warning",
        "<4>of two lines, 100%",
        "<3>an error \\udcff",
        "<4>a library's warning",
    ]
    assert lines[6:8] == ["<2>unexpected error", "<2>Traceback (most recent call last):"]
    assert lines[-1] == "<2>RuntimeError: a bug"
    assert all(line.startswith("<2>") for line in lines[6:])


@pytest.mark.parametrize("journal", ["", "1:2", "of another file"])
def test_lines_are_plain_elsewhere(tmp_path: Path, journal: str) -> None:
    """Also if JOURNAL_STREAM is inherited from a process whose stderr is the journal."""
    with (tmp_path / "lines").open("w+") as lines, (tmp_path / "other").open("w") as other:
        value = stream(other.fileno()) if journal == "of another file" else journal
        run(stderr=lines.fileno(), **({"JOURNAL_STREAM": value} if value else {}))
        written = (tmp_path / "lines").read_text().splitlines()
    assert written[:3] == ["an info line", "a notice", "a warning"]
    assert not [line for line in written if line.startswith("<")]


@pytest.mark.parametrize("closed", [False, True])
def test_a_stderr_without_a_reader_ends_nothing(tmp_path: Path, closed: bool) -> None:
    """stderr is a pipe whose reader has ended, or is closed."""
    done = tmp_path / "done"
    code = f"""
import logging, os, pathlib
{"os.close(2)" if closed else ""}
from enforcer.control import log
log.configure()
for _ in range(2):
    logging.getLogger("enforcer").error("x")
pathlib.Path({str(done)!r}).touch()
"""
    read, write = os.pipe()
    os.close(read)
    try:
        run(stderr=write, code=code)
    finally:
        os.close(write)
    assert done.exists()
