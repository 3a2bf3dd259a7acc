"""Worker processes: progress, results, and processes that are killed or hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcer.control import worker as applying
from enforcer.control.protocol import ReportedError
from enforcer.control.worker import LostError, WorkerProcess


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of the module that the process runs; the time limits are short."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(applying, "_STILL_PREPARING", 3.0)
    monkeypatch.setattr(applying, "_STILL_CHANGING", 1.0)
    yield tmp_path / "worker.py"


def work(module: Path, text: str) -> WorkerProcess:
    module.write_text(f"import os, signal, sys, time\n{text}\n")
    return WorkerProcess("worker")


def test_progress_and_result(module: Path) -> None:
    begun = work(module, 'print("# read"); print("# changing"); print("# attach"); print(\'{"a": 1}\')')
    assert not begun.changing
    assert begun.wait() == {"a": 1}
    assert begun.changing


def test_progress_in_pieces(module: Path) -> None:
    parts = ("# ch", "anging\n# x", "\n{", '"a": 2}')
    text = f"for part in {parts}: print(part, end='', flush=True), time.sleep(0.2)"
    begun = work(module, text)
    assert begun.wait() == {"a": 2}
    assert begun.changing


def test_a_reported_error(module: Path) -> None:
    with pytest.raises(ReportedError, match="wrong"):
        work(module, 'print("# read"); print(\'{"error": "wrong"}\')').wait()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('print("# attach", flush=True); os.kill(os.getpid(), 9)', r"killed by signal 9 \(attach\)"),
        ("sys.exit(3)", "exit code 3 and no result"),
        ('print("{")', "exit code 0 and no result"),
    ],
)
def test_a_process_that_is_lost(module: Path, text: str, words: str) -> None:
    with pytest.raises(LostError, match=words):
        work(module, text).wait()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ('print("# changing", flush=True); os.kill(os.getpid(), signal.SIGSTOP)', 1),
        ('print("# changing", flush=True); time.sleep(1000)', 1),
        ("time.sleep(1000)", 3),
    ],
    ids=["stopped", "asleep", "asleep before it changes anything"],
)
def test_a_process_that_hangs_is_ended(module: Path, text: str, seconds: int) -> None:
    begun = work(module, text)
    with pytest.raises(LostError, match=f"made no progress for {seconds} s"):
        begun.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(begun._process.pid, 0)


def test_a_process_that_works_is_left_alone(module: Path) -> None:
    """A process that reports no progress but uses CPU time is not killed."""
    text = 'end = time.monotonic() + 3\nwhile time.monotonic() < end: pass\nprint("{}")'
    assert work(module, f'print("# changing", flush=True)\n{text}').wait() == {}


def test_a_process_that_computes_without_end_is_ended(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "_BUSY", 2.0)
    with pytest.raises(LostError, match="made no progress for 2 s"):
        work(module, "while True: pass").wait()


def test_what_cannot_be_killed_is_not_waited_for(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example a process that blocks in the kernel on a removed disk."""
    monkeypatch.setattr(applying, "_UNKILLABLE", 1.0)
    begun = work(module, "time.sleep(1000)")
    kill = begun._process.kill
    monkeypatch.setattr(begun._process, "kill", lambda: None)
    began = time.monotonic()
    try:
        with pytest.raises(LostError, match="made no progress"):
            begun.wait()
        assert time.monotonic() - began < 30
    finally:
        kill()
        begun._process.wait()


def test_only_what_prepares_a_change_can_be_left(module: Path) -> None:
    begun = work(module, 'print("{}")')
    assert not begun.prepares  # it loads sessions
    begun.wait()
    begun.module = "enforcer.workers.apply"
    assert begun.prepares
    begun.changing = True
    assert not begun.prepares


def test_a_stopped_process_of_ours_is_told_from_one_that_was_killed(module: Path) -> None:
    begun = work(module, 'print("# changing", flush=True); time.sleep(1000)')
    while not begun.changing:
        begun.ended()
    os.kill(begun._process.pid, signal.SIGKILL)
    with pytest.raises(LostError, match="killed by signal 9"):
        begun.wait()
