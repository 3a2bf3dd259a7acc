"""Named network namespaces: creation and removal, programs and sockets in them, their settings.

Entering is setns(CLONE_NEWNET) alone. ``ip netns exec`` would also give the program a /sys of its own,
which does not show the pins of the BPF file system.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from enforcer.errors import EnforcerError
from enforcer.kernel import namespace

Result = TypeVar("Result")

PATIENCE = 120.0  # seconds


class LabError(EnforcerError):
    """The lab could not be built, or one of its programs did not do what it should."""


def execute(
    argv: Iterable[str], text: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return it with its output; LabError if ``check`` and it failed.

    LabError too if it takes longer than PATIENCE: nothing in a lab may hang.
    """
    argv = list(argv)
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(argv)}: not done after {PATIENCE:.0f} s") from None
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(argv)}: exit code {done.returncode}: {said}")
    return done


def run(line: str) -> str:
    """Run a line of the shell in the caller's own namespace and return its output; LabError if it failed."""
    return execute(["sh", "-c", line]).stdout


class Namespace:
    """One named network namespace, as ``ip netns`` knows it."""

    def __init__(self, name: str):
        self.name = name
        self.path = namespace.RUN_NETNS / name

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    @property
    def exists(self) -> bool:
        """Whether a namespace of this name is there."""
        return self.path.exists()

    def command(self, argv: Iterable[str]) -> list[str]:
        """The arguments that run ``argv`` in here; nsenter execs, so its process id is the program's."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(
        self, *argv: str, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in here to its end."""
        return execute(self.command(argv), text, check)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` in here, in a new thread, so that the caller's thread stays in its namespace."""

        def entered() -> Result:
            namespace.enter(self.name)
            return function()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(entered).result()

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace: it belongs to the namespace that created it, in any thread."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def ip(self, *lines: str) -> None:
        """Carry out lines of ip(8), in order, as one batch; LabError names the first that fails."""
        execute(["ip", "-n", self.name, "-batch", "-"], "\n".join(lines) + "\n")

    def sysctl(self, key: str, value: str | int) -> None:
        """Set one setting of the network, such as ``net.ipv4.ip_forward``."""
        path = Path("/proc/sys") / key.replace(".", "/")
        self.call(lambda: path.write_text(f"{value}\n", encoding="ascii"))

    def sysctls(self, settings: dict[str, str | int]) -> None:
        """Set several settings in one call."""

        def write() -> None:
            for key, value in settings.items():
                (Path("/proc/sys") / key.replace(".", "/")).write_text(f"{value}\n", encoding="ascii")

        self.call(write)

    def offload(self, interface: str, on: bool) -> None:
        """Switch checksum and segmentation offloads of an interface, all together."""
        features = ("rx", "tx", "sg", "tso", "gso", "gro")
        state = "on" if on else "off"
        self.run("ethtool", "-K", interface, *(word for feature in features for word in (feature, state)))

    def cookie(self) -> int:
        """The kernel's number for this namespace, which is not reused while the machine runs."""
        return self.call(namespace.netns_cookie)


def create(*namespaces: Namespace) -> None:
    """Create namespaces; lab, tests and benchmark create all of theirs here."""
    execute(["ip", "-batch", "-"], "".join(f"netns add {namespace.name}\n" for namespace in namespaces))


def delete(*namespaces: Namespace) -> None:
    """Delete those of the namespaces that exist."""
    gone = "".join(f"netns del {namespace.name}\n" for namespace in namespaces if namespace.exists)
    if gone:
        execute(["ip", "-force", "-batch", "-"], gone)


@contextmanager
def temporary(*namespaces: Namespace) -> Iterator[None]:
    """Create namespaces and delete them after the block."""
    try:
        create(*namespaces)
        yield
    finally:
        delete(*namespaces)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Move the calling thread into a namespace, by name or path, and back after the block."""
    back = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespace.enter(name)
        yield
    finally:
        namespace.enter(f"/proc/self/fd/{back}")
        os.close(back)


def veth(name: str, near: Namespace, peer: str, far: Namespace) -> str:
    """A line of ip(8) that creates a veth pair directly in two namespaces, never in the root namespace."""
    return f"link add {name} netns {near.name} type veth peer name {peer} netns {far.name}"


def processes_in(namespaces: Iterable[Namespace]) -> list[int]:
    """Ids of all processes in these namespaces, except the caller's own."""
    inodes = {namespace.path.stat().st_ino for namespace in namespaces if namespace.exists}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if (entry / "ns/net").stat().st_ino in inodes:
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
