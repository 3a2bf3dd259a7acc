"""One gateway: its identity, its places in the file system, and the locks that guard it.

A gateway is a network namespace. It is named by the namespace's cookie (SO_NETNS_COOKIE), which the
kernel does not use twice between two boots: so several gateways on one machine don't know of each other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from enforcer import trust
from enforcer.errors import BusyError, NotInstalledError, PrivilegeError

RUN = Path("/run/enforcer")


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
        """What was applied (enforcer/state.py)."""
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
    def change_lock(self) -> Iterator[None]:
        """Held while the gateway is changed."""
        with self._locked("change.lock", wait=True):
            yield

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
    def _locked(self, name: str, wait: bool = False) -> Iterator[int]:
        """Holds a lock file; raises BusyError if another process does and ``wait`` is false."""
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
                if wait:
                    fcntl.flock(file, fcntl.LOCK_EX)
                elif not _try_lock(file):
                    pid = os.pread(file, 32, 0).decode().strip()
                    raise BusyError(
                        f"another daemon enforces on this gateway: pid {pid}",
                        f"See `enforcer status`; end it with `kill {pid}`.",
                    )
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


def _try_lock(file: int) -> bool:
    """Tries a few times: daemon_pid() of another process holds the lock for an instant."""
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def not_installed() -> NotInstalledError:
    """The error of commands that need something to be enforced."""
    return NotInstalledError("nothing is enforced on this gateway", "Start the daemon: enforcer run")
