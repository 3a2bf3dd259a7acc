"""Tests of rules of other software that set marks on arrival, and of policy routing by these marks."""

from __future__ import annotations

import pytest

from enforcer.kernel import ip_rules, nft_marks
from enforcer.kernel.nft_marks import Setter
from lab.netns import run

MASK = 0x7FFF0000
ARRIVING = "{ type filter hook prerouting priority -150; }"


@pytest.fixture(autouse=True)
def table(netns: str) -> None:
    run("nft add table inet fw")
    run(f"nft add chain inet fw pre '{ARRIVING}'")


def setters() -> set[Setter]:
    return set(nft_marks.setters())


def in_chain(name: str, mark: int | None, table: str = "inet fw") -> Setter:
    return Setter(f"chain {name} of nftables table {table}", mark)


@pytest.mark.parametrize(
    ("rule", "mark"),
    [
        ("tcp dport 443 meta mark set 0x10", 0x10),
        ("meta mark set meta mark or 0x20", 0x20),
        ("meta mark set meta mark and 0xffffff00 or 0x30", 0x30),
        ("meta mark set meta mark xor 0x50", 0x50),
        ("meta mark set meta mark and 0xff", None),
        ("meta mark set ct mark", None),
        # The constants apply to another value than the packet's mark, whose bits are all known.
        ("meta mark set ct mark and 0xff00 or 0x1", None),
        ("meta mark set ct mark or 0x1", None),
        ("meta mark set numgen random mod 4 or 0x2", None),
        ("meta mark set jhash ip saddr mod 4 or 0x2", None),
        # The register contains a constant first.
        ("ct mark set 0x10 meta mark set ct mark", None),
        ("meta priority set 0x10 meta mark set numgen random mod 4", None),
        ("ct mark set 0x10 meta mark set jhash ip saddr mod 4", None),
        ("ct mark set 0x10 meta mark set @nh,96,32", None),
        ("meta mark set numgen random mod 4", None),
        ("meta mark set tcp dport map { 80 : 1, 443 : 2 }", None),
    ],
)
def test_a_rule_at_arrival(rule: str, mark: int | None) -> None:
    assert setters() == set()
    run(f"nft 'add rule inet fw pre {rule}'")
    assert setters() == {in_chain("pre", mark)}


@pytest.mark.parametrize(
    "rule",
    ["meta mark 0x10 counter accept", "meta priority set 1", "ct mark set meta mark", "ct mark set 0x10"],
)
def test_a_rule_that_sets_none(rule: str) -> None:
    run(f"nft 'add rule inet fw pre {rule}'")
    assert setters() == set()


def test_chains_that_are_reached() -> None:
    for name in ("one", "two", "three", "never"):
        run(f"nft add chain inet fw {name}")
    run("nft add rule inet fw pre tcp dport 80 jump one")
    run("nft add rule inet fw one goto two")
    run("nft add rule inet fw two meta mark set 2")
    run("nft add rule inet fw never meta mark set 9")
    assert setters() == {in_chain("two", 2)}
    run("nft add chain inet fw forward '{ type filter hook forward priority 0; }'")
    run("nft add rule inet fw forward meta mark set 7")
    run("nft add chain inet fw output '{ type route hook output priority 0; }'")
    run("nft add rule inet fw output meta mark set 8")
    assert setters() == {in_chain("two", 2)}
    run("nft 'add rule inet fw pre tcp dport vmap { 81 : jump three }'")
    assert in_chain("never", 9) in setters()  # the targets of a verdict map are unknown
    assert in_chain("forward", 7) not in setters()


def test_iptables() -> None:
    for command, table in (("iptables-nft", "ip mangle"), ("ip6tables-nft", "ip6 mangle")):
        run(f"{command} -t mangle -A PREROUTING -p tcp --dport 80 -j MARK --set-mark 0x40")
        assert in_chain("PREROUTING", 0x40, table) in setters()
        run(f"{command} -t mangle -F PREROUTING")
        run(f"{command} -t mangle -A PREROUTING -j CONNMARK --restore-mark")
        assert in_chain("PREROUTING", None, table) in setters()
        run(f"{command} -t mangle -F PREROUTING")
        run(f"{command} -t mangle -A FORWARD -j MARK --set-mark 0x40")
    assert setters() == set()


def test_our_own_table_is_not_said() -> None:
    run("nft add table inet enforcer")
    run(f"nft add chain inet enforcer pre '{ARRIVING}'")
    run("nft add rule inet enforcer pre meta mark set 0x10")
    assert setters() == set()


@pytest.mark.parametrize("command", ["ip", "ip -6"])
def test_rules_that_look_at_such_marks(command: str) -> None:
    run(f"{command} rule add fwmark 0x10/0xff lookup 200 priority 100")
    run(f"{command} rule add not fwmark 0xca6c lookup 201 priority 101")
    assert ip_rules.using_foreign_marks(MASK) == []
    run("nft add rule inet fw pre meta mark set 0x110")
    (said,) = ip_rules.using_foreign_marks(MASK)
    assert f"{command} rule 100 (fwmark 0x10/0xff lookup 200)" in said
    assert "chain pre of nftables table inet fw" in said
    run("nft add rule inet fw pre meta mark set ct mark")
    assert len(ip_rules.using_foreign_marks(MASK)) == 2
    run("nft flush chain inet fw pre")
    run("nft add rule inet fw pre meta mark set 0x20")
    assert ip_rules.using_foreign_marks(MASK) == []
    run("nft add rule inet fw pre meta mark set 0xca6c")
    (said,) = ip_rules.using_foreign_marks(MASK)
    assert "not fwmark 0xca6c" in said
