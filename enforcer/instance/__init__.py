"""One gateway: its identity, its places in the file system, and the locks that guard it.

A gateway is a network namespace. It is named by the namespace's cookie (SO_NETNS_COOKIE), which the
kernel does not use twice between two boots: so several gateways on one machine don't know of each other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from enforcer.errors import (
    BusyError,
    EnforcerError,
    LockedError,
    NotInstalledError,
    PrivilegeError,
)
from enforcer.instance import trust

RUN = Path("/run/enforcer")
PATIENCE = 10.0
"""Seconds that one change of the gateway waits for another's end."""
_KILLED = 5.0
_PAUSE = 0.02


@dataclass(frozen=True)
class Instance:
    """The gateway of the network namespace with this cookie."""

    cookie: int

    @property
    def directory(self) -> Path:
        """State, locks and the control socket; on tmpfs, so it ends with the kernel state it describes.

        Raises UntrustedError if others could have prepared it.
        """
        private = RUN / f"{self.cookie:x}"
        trust.check_directory(RUN)
        trust.check_directory(private)
        return private

    @property
    def state_file(self) -> Path:
        """What was applied (enforcer/gateway/state.py)."""
        return self.directory / "state.json"

    @property
    def control_socket(self) -> Path:
        """Where the daemon takes requests."""
        return self.directory / "control.sock"

    @property
    def facts_file(self) -> Path:
        """Sessions and learnt names (enforcer/facts/store.py)."""
        return self.directory / "facts.db"

    def create(self) -> None:
        """Makes the directory."""
        try:
            # Only root's: whoever can open the locks can hold them.
            RUN.mkdir(mode=0o755, exist_ok=True)
            trust.make_directory(self.directory)
        except FileNotFoundError:
            self.create()  # `down` of another gateway has just taken the directory above away
        except PermissionError as error:
            raise PrivilegeError(f"cannot create {self.directory}", "Run as root.") from error

    def remove(self) -> None:
        """Takes the directory away; the change lock is held. A running daemon keeps its lock to its end."""
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if not path.name.endswith(".lock"):
                    path.unlink(missing_ok=True)
        with suppress(BusyError), self._locked("daemon.lock") as file:
            os.ftruncate(file, 0)
            self._remove_directory()

    def _remove_directory(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        with suppress(OSError):  # the last gateway's takes that of all with it
            RUN.rmdir()

    @contextmanager
    def daemon_lock(self) -> Iterator[None]:
        """Held for a daemon's life; the file holds its pid. Raises BusyError with the other one's pid."""
        with self._locked("daemon.lock") as file:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            try:
                yield
            finally:
                if not self.state_file.exists():
                    self._remove_directory()

    @contextmanager
    def change_lock(self, patience: float = PATIENCE, *, kill: bool = False) -> Iterator[None]:
        """Held while the gateway is changed; the file holds the pid of the process.

        A process that still has it after ``patience`` seconds hangs: LockedError, or with ``kill`` it is
        killed, and what it has left half done is the caller's to heal.
        """
        with self._locked("change.lock", patience, kill) as file:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            yield

    def changing_pid(self) -> int | None:
        """The process that changes the gateway at this moment, or None. Does not touch the lock."""
        return _holder(self.directory / "change.lock")

    def kill_daemon(self) -> None:
        """SIGKILL, for a daemon that does not end otherwise."""
        _kill_holder(self.directory / "daemon.lock")

    def daemon_pid(self) -> int | None:
        """The running daemon's pid, or None."""
        try:
            file = os.open(self.directory / "daemon.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise PrivilegeError(f"cannot read {self.directory}", "Run as root.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            # Empty for an instant after it was locked.
            return int(os.pread(file, 32, 0) or b"0") or None
        finally:
            os.close(file)
        return None

    @contextmanager
    def _locked(self, name: str, patience: float = 0.0, kill: bool = False) -> Iterator[int]:
        """Holds a lock file. Raises BusyError if another process does for longer than ``patience``."""
        path = self.directory / name
        while True:
            self.create()
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # `down` has just taken the directory away
            except PermissionError as error:
                raise PrivilegeError(f"cannot open {path}", "Run as root.") from error
            try:
                if not _try_lock(file, patience):
                    if kill:
                        _kill_holder(path)
                    if not kill or not _try_lock(file, _KILLED):
                        raise _busy(name, os.pread(file, 32, 0).decode().strip())
                if _is_at(file, path):
                    yield file
                    return
            finally:
                os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one at this path: `down` may have removed it while we waited."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def _busy(name: str, pid: str) -> EnforcerError:
    if name == "daemon.lock":
        return BusyError(
            f"another daemon enforces on this gateway: pid {pid}",
            f"See `enforcer status`; end it with `kill {pid}`.",
        )
    return LockedError(
        f"another process changes this gateway: pid {pid}",
        f"Try again in a moment. If it hangs, end it with `kill -9 {pid}`.",
    )


def _try_lock(file: int, patience: float = 0.0) -> bool:
    """Tries several times in any case: daemon_pid() of another process holds the lock for an instant."""
    deadline = time.monotonic() + max(patience, 5 * _PAUSE)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        else:
            return True


def _holder(path: Path) -> int | None:
    """The process that the kernel says holds the lock on this file (proc(5), /proc/locks)."""
    with suppress(OSError):
        status = path.stat()
        where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            # A process that waits has "->" after the number.
            if fields[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and fields[5] == where:
                return int(fields[4])
    return None


def _kill_holder(path: Path) -> None:
    """SIGKILL to the process that holds the lock, and to no other that has its number by now."""
    pid = _holder(path)
    if pid is None or pid <= 0 or pid == os.getpid():
        return
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            if _holder(path) == pid:
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)


def not_installed() -> NotInstalledError:
    """The error of commands that need something to be enforced."""
    return NotInstalledError("nothing is enforced on this gateway", "Start the daemon: enforcer run")
