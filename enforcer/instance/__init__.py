"""The identity of one gateway, its directories, and its locks.

A gateway is a network namespace, identified by the namespace's cookie (SO_NETNS_COOKIE), which is unique
until the next boot. So several gateways on one machine are independent.
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
"""Seconds that a change of the gateway waits for the end of another one."""
_KILLED = 5.0
_PAUSE = 0.02


@dataclass(frozen=True)
class Instance:
    """The gateway of the network namespace with this cookie."""

    cookie: int

    @property
    def directory(self) -> Path:
        """The directory of state, locks and control socket; on tmpfs, so a reboot clears it.

        Raises UntrustedError if another user could have prepared it.
        """
        private = RUN / f"{self.cookie:x}"
        trust.check_directory(RUN)
        trust.check_directory(private)
        return private

    @property
    def state_file(self) -> Path:
        """The file that describes the applied state (enforcer/gateway/state.py)."""
        return self.directory / "state.json"

    @property
    def control_socket(self) -> Path:
        """The socket on which the daemon receives requests."""
        return self.directory / "control.sock"

    @property
    def facts_file(self) -> Path:
        """The database of sessions and learnt names (enforcer/facts/store.py)."""
        return self.directory / "facts.db"

    def create(self) -> None:
        """Creates the directory. Raises UntrustedError, PrivilegeError."""
        try:
            # Private: users with access to the lock files could hold the locks.
            RUN.mkdir(mode=0o755, exist_ok=True)
            trust.make_directory(self.directory)
        except FileNotFoundError:
            self.create()  # another gateway's `down` removed RUN meanwhile
        except PermissionError as error:
            raise PrivilegeError(f"cannot create {self.directory}", "Run as root.") from error

    def remove(self) -> None:
        """Removes the directory, under the change lock; lock files that a running daemon holds stay."""
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if not path.name.endswith(".lock"):
                    path.unlink(missing_ok=True)
        with suppress(BusyError), self._locked("daemon.lock") as file:
            os.ftruncate(file, 0)
            self._remove_directory()

    def _remove_directory(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        with suppress(OSError):  # not empty unless this was the last gateway
            RUN.rmdir()

    @contextmanager
    def daemon_lock(self) -> Iterator[None]:
        """Holds the daemon's lock; the file has its pid. Raises BusyError with another daemon's pid."""
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
        """Holds the change lock; the file has the pid of the process.

        If another process holds it for more than ``patience`` seconds, raises LockedError, or with ``kill``
        kills that process; the caller then heals its unfinished plan.
        """
        with self._locked("change.lock", patience, kill) as file:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            yield

    def changing_pid(self) -> int | None:
        """The pid of the process that holds the change lock, or None. Does not take the lock."""
        return _holder(self.directory / "change.lock")

    def kill_daemon(self) -> None:
        """Kills the daemon (SIGKILL)."""
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
            # The file is empty for an instant after it was locked.
            return int(os.pread(file, 32, 0) or b"0") or None
        finally:
            os.close(file)
        return None

    @contextmanager
    def _locked(self, name: str, patience: float = 0.0, kill: bool = False) -> Iterator[int]:
        """Holds a lock file. Raises BusyError, LockedError if another process holds it for longer."""
        path = self.directory / name
        while True:
            self.create()
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # `down` removed the directory meanwhile
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
    """Whether the open file is still the one at this path; `down` may have removed it meanwhile."""
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
    """Tries for ``patience`` seconds, and several times: daemon_pid() takes the lock for an instant."""
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
    """The pid of the process that holds the lock on this file (proc(5), /proc/locks), or None."""
    with suppress(OSError):
        status = path.stat()
        where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            # The line of a waiting process has "->" after the number.
            if fields[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and fields[5] == where:
                return int(fields[4])
    return None


def _kill_holder(path: Path) -> None:
    """Kills the process that holds the lock; a pidfd excludes a process that reused its pid."""
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
    """The error of commands that need a gateway in force."""
    return NotInstalledError("nothing is enforced on this gateway", "Start the daemon: enforcer run")
