"""Kernel settings under /proc/sys, of this network namespace where the kernel keeps them by namespace.

Names are written with slashes or dots; with dots only where no part of the name holds one (an interface
called ``eth0.5`` needs slashes), as sysctl(8) has it. Only the standard library.
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
    """The value, without the line's end."""
    try:
        return _path(name).read_text().rstrip("\n")
    except OSError as error:
        raise _failure("reading", name, error) from error


def exists(name: str) -> bool:
    """Whether the kernel has the setting here; an interface's sysctls go with it."""
    return _path(name).exists()


def interface_of(name: str) -> str | None:
    """The interface of which it is a setting, if it is one's."""
    match = _INTERFACE.fullmatch(name)
    return match["name"] if match else None


def of_interface(name: str, interface: str) -> str:
    """The name of the same setting of another interface."""
    return _INTERFACE.sub(lambda match: match["before"] + interface + match["after"], name)


def write(name: str, value: str) -> None:
    """Set the value; one that the kernel does not take is an error and changes nothing."""
    try:
        _path(name).write_text(value)
    except OSError as error:
        raise _failure(f"setting to {value!r}", name, error) from error


def found(names: Iterable[str]) -> dict[str, str]:
    """The values of those that are there."""
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
    """Set the value, and leave as they are the settings that the kernel sets with it.

    An interface that has gone has no settings, which is no error.
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
    """The other settings that writing this one sets too (net/ipv6/addrconf.c, addrconf_forward_change)."""
    if name != "net/ipv6/conf/all/forwarding":
        return []
    # Switched off, it takes force_forwarding (Linux 6.17) with it. That of `all` sets the others, too.
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
    """After how many seconds without a packet conntrack forgets a connection, by protocol and state.

    Keys are the settings' names without ``nf_conntrack_`` and ``timeout``: ``tcp_established``, ``udp``,
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
