"""What the lab needs of the machine, checked before anything is built."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = (
    *("ip", "tc", "nft", "nsenter", "unshare", "ethtool", "ping", "curl", "dig", "tcpdump", "iperf3"),
    *("nginx", "unbound", "sshd", "ssh-keygen", "conntrack"),
)

# Each is tried in a network namespace of its own, which ends with the shell.
_TRIALS = {
    "network namespaces (CONFIG_NET_NS)": "true",
    "veth (CONFIG_VETH)": "ip link add one type veth peer name two",
    "TC hooks for BPF (CONFIG_NET_CLS_ACT, CONFIG_NET_SCH_INGRESS)": "tc qdisc add dev lo clsact",
    "source NAT in nftables (CONFIG_NFT_NAT)": (
        "nft 'add table inet t; add chain inet t c { type nat hook postrouting priority 0; }; "
        "add rule inet t c snat ip to 203.0.113.1 fully-random'"
    ),
    "connection tracking in nftables (CONFIG_NFT_CT)": (
        "nft 'add table inet t; add chain inet t c { type filter hook forward priority 0; }; "
        "add rule inet t c ct state invalid drop'"
    ),
    "rejects in nftables (CONFIG_NFT_REJECT_INET)": (
        "nft 'add table inet t; add chain inet t c { type filter hook prerouting priority -300; }; "
        "add rule inet t c reject with icmpx admin-prohibited'"
    ),
}


def missing() -> list[str]:
    """Descriptions of what is missing; empty if the lab can be built here. Takes about 50 ms."""
    return list(_missing())


def _missing() -> Iterator[str]:
    if os.geteuid():
        yield "root"
        return
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=path)]
    if lacking:
        yield f"programs: {', '.join(lacking)}"
        return
    if not Path("/sys/fs/bpf").is_dir():  # the mount point is made by kernel/bpf/inode.c
        yield "BPF (CONFIG_BPF_SYSCALL)"
    for name, trial in _TRIALS.items():
        if subprocess.run(
            ["unshare", "--net", "sh", "-c", trial], capture_output=True, check=False
        ).returncode:
            yield name
