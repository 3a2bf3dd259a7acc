"""A network namespace by name: make it, run programs in it, make sockets in it, set it up.

Entering is setns(CLONE_NEWNET) alone. ``ip netns exec`` would also give the program a /sys of its own,
where the BPF file system's pins are not to be seen.
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
        """The arguments that run ``argv`` in here; nsenter execs, so the process id stays the program's."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(
        self, *argv: str, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in here to its end."""
        return execute(self.command(argv), text, check)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` in here, in a thread of its own, so that the caller's thread never moves."""

        def entered() -> Result:
            namespace.enter(self.name)
            return function()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(entered).result()

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace: a socket stays where it was made, whoever uses it."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def ip(self, *lines: str) -> None:
        """Carry out lines of ip(8), in order, as one batch; LabError names the first that fails."""
        execute(["ip", "-n", self.name, "-batch", "-"], "\n".join(lines) + "\n")

    def sysctl(self, key: str, value: str | int) -> None:
        """Set one setting of the network, such as ``net.ipv4.ip_forward``."""
        path = Path("/proc/sys") / key.replace(".", "/")
        self.call(lambda: path.write_text(f"{value}\n", encoding="ascii"))

    def sysctls(self, settings: dict[str, str | int]) -> None:
        """Set several, in one visit."""

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
        """The kernel's number for this namespace, never used twice while the machine runs."""
        return self.call(namespace.netns_cookie)


def create(*namespaces: Namespace) -> None:
    """Make namespaces; nothing else of the lab, the tests or the benchmark makes one."""
    execute(["ip", "-batch", "-"], "".join(f"netns add {namespace.name}\n" for namespace in namespaces))


def delete(*namespaces: Namespace) -> None:
    """Take away those that are there."""
    gone = "".join(f"netns del {namespace.name}\n" for namespace in namespaces if namespace.exists)
    if gone:
        execute(["ip", "-force", "-batch", "-"], gone)


@contextmanager
def temporary(*namespaces: Namespace) -> Iterator[None]:
    """Have namespaces for as long as the block runs."""
    try:
        create(*namespaces)
        yield
    finally:
        delete(*namespaces)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Have the calling thread in a namespace, by its name or a path; it comes back in any case."""
    back = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespace.enter(name)
        yield
    finally:
        namespace.enter(f"/proc/self/fd/{back}")
        os.close(back)


def veth(name: str, near: Namespace, peer: str, far: Namespace) -> str:
    """A line of ip(8): two veth interfaces, made where they belong. The root namespace never sees one."""
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
