"""Sysctls under /proc/sys, those of this network namespace where the kernel separates them.

Names have slashes or dots; dots only where no component contains one (an interface ``eth0.5`` needs slashes),
as in sysctl(8). Standard library only.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path

from enforcer.errors import KernelError, PrivilegeError

ROOT = Path("/proc/sys")
CONNTRACK = "net/netfilter"
_INTERFACE = re.compile(
    "(?P<before>net/ipv[46]/(?:conf|neigh)/)(?!(?:all|default)/)(?P<name>[^/]+)(?P<after>/.+)"
)


def _path(name: str) -> Path:
    return ROOT / (name if "/" in name else name.replace(".", "/"))


def read(name: str) -> str:
    """The value without the newline."""
    try:
        return _path(name).read_text().rstrip("\n")
    except OSError as error:
        raise _failure("reading", name, error) from error


def exists(name: str) -> bool:
    """Whether the sysctl exists; an interface's sysctls disappear with it."""
    return _path(name).exists()


def interface_of(name: str) -> str | None:
    """The interface that the sysctl belongs to, or None."""
    match = _INTERFACE.fullmatch(name)
    return match["name"] if match else None


def of_interface(name: str, interface: str) -> str:
    """The name of the same sysctl of another interface."""
    return _INTERFACE.sub(lambda match: match["before"] + interface + match["after"], name)


def write(name: str, value: str) -> None:
    """Sets the value. Raises KernelError, PrivilegeError; the value is then unchanged."""
    try:
        _path(name).write_text(value)
    except OSError as error:
        raise _failure(f"setting to {value!r}", name, error) from error


def found(names: Iterable[str]) -> dict[str, str]:
    """The values of the sysctls that exist."""
    values = {}
    for name in dict.fromkeys(names):
        try:
            values[name] = _path(name).read_text().rstrip("\n")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _failure("reading", name, error) from error
    return values


def write_alone(name: str, value: str) -> None:
    """Sets the value and restores the sysctls that the kernel sets with it (:func:`followers`).

    A sysctl of an interface that was removed is skipped.
    """
    before = found(followers(name))
    _write_if_there(name, value)
    for follower, kept in before.items():
        if found([follower]).get(follower, kept) != kept:
            _write_if_there(follower, kept)


def _write_if_there(name: str, value: str) -> None:
    try:
        write(name, value)
    except KernelError:
        if interface_of(name) is None or exists(name):
            raise


def followers(name: str) -> list[str]:
    """The other sysctls that the kernel sets with this one (net/ipv6/addrconf.c, addrconf_forward_change)."""
    if name != "net/ipv6/conf/all/forwarding":
        return []
    # Switching it off clears force_forwarding (Linux 6.17) too. That of `all` sets the others.
    conf = ROOT / "net/ipv6/conf"
    paths = sorted(conf.glob("*/force_forwarding"), key=lambda path: path.parent.name == "all")
    paths += sorted(path for path in conf.glob("*/forwarding") if path.parent.name != "all")
    return [str(path.relative_to(ROOT)) for path in paths]


def _failure(what: str, name: str, error: OSError) -> KernelError | PrivilegeError:
    message = f"{what} the kernel setting {name}: {error.strerror}"
    if error.errno == errno.ENOENT:
        module = "nf_conntrack is not loaded" if "netfilter" in name else "no such interface or module"
        return KernelError(message, f"the kernel has no such setting here ({module}?)")
    if error.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeError(message, "run it as root; some settings exist only in the initial namespace")
    if error.errno == errno.EROFS:
        return KernelError(message, f"{ROOT} is mounted read-only here")
    return KernelError(message)


def conntrack_timeouts() -> dict[str, float]:
    """conntrack's timeouts in seconds by protocol and state.

    Keys are the sysctls' names without ``nf_conntrack_`` and ``timeout``: ``tcp_established``, ``udp``,
    ``udp_stream``, …
    """
    found = {}
    for entry in sorted((ROOT / CONNTRACK).glob("nf_conntrack_*_timeout*")):
        protocol, _, state = entry.name.removeprefix("nf_conntrack_").partition("_timeout")
        if protocol in ("tcp", "udp"):
            found[protocol + state] = float(read(f"{CONNTRACK}/{entry.name}"))
    if not found:
        raise KernelError("this kernel tracks no connections here", "load the module nf_conntrack")
    return found
