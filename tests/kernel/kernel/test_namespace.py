"""Tests of entering network namespaces, and of their sysctl settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enforcer.errors import KernelError, PrivilegeError, UsageError
from enforcer.kernel import namespace, sysctl
from lab.netns import inside, run

from ..conftest import new_namespace

MOUNTS = Path("/proc/self/ns/mnt")


def test_entering_changes_the_network_and_nothing_else(netns: str) -> None:
    before = MOUNTS.stat().st_ino, namespace.netns_cookie()
    with new_namespace("other") as other:
        run(f"ip -n {other} link add only-here type veth peer name far0")
        with inside(other):
            assert "only-here" in run("ip link")
            cookie = namespace.netns_cookie()
        with inside(f"/run/netns/{other}"):
            assert namespace.netns_cookie() == cookie
        assert other in namespace.names()
    assert (MOUNTS.stat().st_ino, namespace.netns_cookie()) == before
    assert cookie != before[1]


def test_no_such_namespace() -> None:
    with pytest.raises(UsageError, match=r"no network namespace nowhere \(/run/netns/nowhere\)"):
        namespace.enter("nowhere")
    with pytest.raises(UsageError, match="not a network namespace"):
        namespace.enter("/etc/hostname")


def test_entering_without_privilege(netns: str) -> None:
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setuid(65534)
            namespace.enter(netns)
        except PrivilegeError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_settings(netns: str) -> None:
    for name in ("net.ipv4.ip_forward", "net/ipv4/ip_forward"):
        sysctl.write(name, "1")
        assert sysctl.read(name) == "1"
        sysctl.write(name, "0")
    assert run("sysctl -n net.ipv4.ip_forward") == "0\n"


def test_a_setting_alone(netns: str) -> None:
    """IPv6 forwarding of `all` changes without the settings of each interface and of `default`."""
    run("ip link add one0 type veth peer name two0")
    one, other, default = (f"net/ipv6/conf/{name}/forwarding" for name in ("one0", "two0", "default"))
    for_all = "net/ipv6/conf/all/forwarding"
    sysctl.write(other, "1")
    before = sysctl.found([one, other, default, for_all])
    assert before == {one: "0", other: "1", default: "0", for_all: "0"}
    sysctl.write_alone(for_all, "1")
    assert sysctl.found(before) == {**before, for_all: "1"}
    sysctl.write_alone(for_all, "0")
    assert sysctl.found(before) == before


def test_settings_of_an_interface_that_has_gone(netns: str) -> None:
    gone = "net/ipv4/conf/gone.1/forwarding"
    assert sysctl.found([gone, "net/ipv4/ip_forward"]) == {"net/ipv4/ip_forward": "0"}
    sysctl.write_alone(gone, "1")
    for there in ("net/ipv4/conf/all/nonsense", "net/ipv4/conf/lo/forwarding"):
        with pytest.raises(KernelError):
            sysctl.write_alone(there, "many")


def test_errors_name_the_setting(netns: str) -> None:
    with pytest.raises(KernelError, match=r"reading the kernel setting net\.ipv4\.nonsense"):
        sysctl.read("net.ipv4.nonsense")
    with pytest.raises(
        KernelError, match=r"setting to 'many' the kernel setting net\.ipv4\.ip_forward: Invalid"
    ):
        sysctl.write("net.ipv4.ip_forward", "many")


def test_conntrack_timeouts(netns: str) -> None:
    sysctl.write("net.netfilter.nf_conntrack_tcp_timeout_established", "4321")
    timeouts = sysctl.conntrack_timeouts()
    assert timeouts["tcp_established"] == 4321.0
    assert {"tcp_syn_sent", "tcp_time_wait", "tcp_close", "tcp_unacknowledged", "udp", "udp_stream"} <= set(
        timeouts
    )
    assert all(value > 0 for value in timeouts.values())
