"""Tests of wrong files, users and kernels: one clear message each, the right exit code, nothing changed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from snapshot import difference, snapshot

from lab.configuration import LAX1, Document, added, changed, dump
from lab.gateway import LabGateway
from lab.netns import execute
from lab.topology import SHARED, Lab

Edit = Callable[[Document], Document]

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
EGRESS = {"name": "more", "location": "lax", "ipv4": "203.0.113.30", "ipv6": "2001:db8:4::/64"}


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[LabGateway]:
    """A gateway with a running daemon, for `reload`."""
    gateway = LabGateway(lab).start()
    yield gateway
    gateway.stop()
    gateway.run("down", check=False)


@pytest.fixture(scope="module")
def idle(machine: None) -> Iterator[LabGateway]:
    """A gateway without an enforcer, for `check` and `run`."""
    with Lab(f"lab{os.getpid()}-idle") as lab:
        yield LabGateway(lab)


def egress(**fields: Any) -> Edit:
    return lambda config: added(config, "egress_ips", EGRESS | fields)


def policy(**fields: Any) -> Edit:
    return lambda config: added(config, "policies", {"name": "more", "precedence": 99} | fields)


def top(**fields: Any) -> Edit:
    return lambda config: config | fields


WRONG: dict[str, tuple[Edit, str, str]] = {
    # Faults that the specification names: the edit, a part of the reported line, a part of the message.
    "unknown key": (top(proxies={}), "proxies:", "proxies"),
    "unknown key deeper": (policy(egres="default"), "egres:", "egres"),
    "egress IP twice": (egress(name="lax-1"), "name: lax-1", "lax-1"),
    "address at two locations": (egress(location="nyc", ipv4=LAX1[4]), f"ipv4: {LAX1[4]}", "lax-1"),
    "overlapping ranges": (egress(ipv6="2001:db8:1:0:8000::/65"), "2001:db8:1:0:8000::/65", "lax-1"),
    "address nobody owns": (policy(egress={"ipv4": "203.0.113.99"}), "203.0.113.99", "no egress IP"),
    "range nobody owns": (policy(egress={"ipv6": "2001:db8:99::/64"}), "2001:db8:99::/64", "no egress IP"),
    "fallback nobody owns": (
        policy(egress={"ipv4": LAX1[4], "ipv4_fallback": "203.0.113.99"}),
        "ipv4_fallback: 203.0.113.99",
        "no egress IP",
    ),
    "name of no egress IP": (policy(egress="lax-9"), "egress: lax-9", "no egress IP"),
    "IPv6 in an IPv4 field": (policy(egress={"ipv4": LAX1[6]}), f"ipv4: {LAX1[6]}", "IPv4"),
    "equal precedences": (policy(precedence=10), "precedence: 10", "precedence"),
    "limit too high": (top(limits={"connections_per_origin": 64513}), "64513", "64,512"),
    "interface that doesn't exist": (
        top(interfaces={"inside": ["in0", "in9"], "outside": ["out0"]}),
        "in9",
        "does not exist",
    ),
    "interface on both sides": (
        top(interfaces={"inside": ["in0", "out0"], "outside": ["out0"]}),
        "out0",
        "both sides",
    ),
    "shared address that is dedicated": (top(shared={"ipv4": LAX1[4], "ipv6": SHARED[6]}), LAX1[4], "lax-1"),
    "unknown location": (top(location="mars"), "location: mars", "mars"),
    "expression": (policy(traffic='net.dst.ip == "10.0.0.1" and'), "traffic:", "traffic"),
    "unknown field": (policy(traffic="net.dst.ipp == 10.0.0.1"), "traffic:", "net.dst.ipp"),
    "missing section": (lambda config: {key: config[key] for key in config if key != "shared"}, "", "shared"),
}


def commands(
    idle: LabGateway, running: LabGateway, text: str | bytes
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run `check`, `run` and `reload` on the file in parallel."""
    content = text.encode() if isinstance(text, str) else text
    for gateway in (idle, running):
        gateway.config.write_bytes(content)
    return both(idle, running)


def both(idle: LabGateway, running: LabGateway) -> dict[str, subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(3) as pool:
        asked = {
            verb: pool.submit(gateway.run, verb, check=False)
            for verb, gateway in (("check", idle), ("run", idle), ("reload", running))
        }
        return {verb: done.result() for verb, done in asked.items()}


@contextlib.contextmanager
def untouched(*gateways: LabGateway) -> Iterator[None]:
    """Assert that neither the gateways' kernel state nor their daemons changed."""
    before = [snapshot(gateway.lab.gw) for gateway in gateways]
    yield
    for gateway, was in zip(gateways, before, strict=True):
        assert difference(was, snapshot(gateway.lab.gw)) == ""
        assert gateway.process is None or gateway.alive


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_file_is_named_with_its_line(idle: LabGateway, running: LabGateway, fault: str) -> None:
    edit, line, message = WRONG[fault]
    text = dump(edit(idle.lab.config()))
    numbers = [str(number) for number, each in enumerate(text.splitlines(), 1) if line in each]
    with untouched(idle, running):
        for verb, done in commands(idle, running, text).items():
            said = done.stderr
            assert (done.returncode, done.stdout) == (2, ""), (verb, said)
            assert "Traceback" not in said
            file = running.config if verb == "reload" else idle.config
            first = said.splitlines()[0]
            assert first.startswith(str(file)), (verb, said)
            assert message in said, (verb, said)
            if line:
                assert any(f"{file}:{number}:" in said for number in numbers), (verb, said, numbers)


def test_all_faults_are_said_at_once(idle: LabGateway, running: LabGateway) -> None:
    config = idle.lab.config() | {"location": "mars", "surprise": 1}
    config = changed(config, "policies", "bank", precedence=20)
    with untouched(idle, running):
        for verb, done in commands(idle, running, dump(config)).items():
            assert done.returncode == 2
            for word in ("mars", "surprise", "precedence"):
                assert word in done.stderr, verb
            assert len(done.stderr.splitlines()) == 3, done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"{", ":1"),
        (b"a: b: c\n", ":1:"),
        (b"\x00\x01\x02", ":1:"),
        (b"\xff\xfe\xfa", "UTF-8"),
        (b"- a\n- b\n", "expected"),
        (b"just words\n", "expected"),
        (b"x" * (10 << 20), "MiB"),
        (b"location: lax\n" * 700_000, "MiB"),
    ],
)
def test_what_is_no_configuration_at_all(
    idle: LabGateway, running: LabGateway, content: bytes, message: str
) -> None:
    with untouched(idle, running):
        for verb, done in commands(idle, running, content).items():
            assert (done.returncode, done.stdout) == (2, ""), verb
            assert message in done.stderr, (verb, done.stderr[:500])
            assert "Traceback" not in done.stderr
            assert len(done.stderr) < 1000


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_a_file_that_cannot_be_read(idle: LabGateway, running: LabGateway, kind: str) -> None:
    for gateway in (idle, running):
        gateway.config.unlink()
        if kind == "directory":
            gateway.config.mkdir()
        elif kind == "fifo":
            os.mkfifo(gateway.config)
    try:
        with untouched(idle, running):
            for verb, done in both(idle, running).items():
                assert (done.returncode, done.stdout) == (2, ""), (verb, done.stderr)
                assert "enforcer.yaml" in done.stderr
                assert "Traceback" not in done.stderr
    finally:
        for gateway in (idle, running):
            if kind == "directory":
                gateway.config.rmdir()
            else:
                gateway.config.unlink(missing_ok=True)
            gateway.write(gateway.lab.config())


def test_fewer_than_two_cities_is_a_warning(idle: LabGateway, running: LabGateway) -> None:
    config = idle.lab.config()
    config["locations"]["nyc"]["city"] = "Los Angeles"
    idle.write(config)
    done = idle.run("check")
    assert done.stderr.startswith("warning: ")
    assert "one city" in done.stderr
    assert "valid" in done.stdout


# --- users


@pytest.mark.parametrize("verb", ["run", "status", "down", "flows", "plan", "reload"])
def test_not_being_root_is_said(idle: LabGateway, running: LabGateway, verb: str) -> None:
    with untouched(idle, running):
        for gateway in (idle, running):
            gateway.write(gateway.lab.config())
            plain = [sys.executable, "-m", "enforcer", "--config", str(gateway.config), verb]
            done = gateway.lab.gw.run(*NOBODY, *plain, check=False)
            assert "Traceback" not in done.stderr
            if gateway is idle and verb in ("status", "flows", "reload"):
                # Every user may learn that no enforcer runs.
                assert done.returncode == (verb != "status")
                assert "root" not in done.stderr
                continue
            assert (done.returncode, done.stdout) == (1, ""), (gateway is idle, done)
            assert "root" in done.stderr
            assert len(done.stderr.splitlines()) == 2, done.stderr


def test_another_namespace_is_not_for_everybody(running: LabGateway) -> None:
    done = execute([*NOBODY, *running.enforcer, "status"], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "root" in done.stderr
    assert "Traceback" not in done.stderr


# --- kernels

# seccomp(2) makes bpf(2) fail as on a kernel without CONFIG_BPF_SYSCALL (include/uapi/linux/seccomp.h,
# bpf_common.h; the architecture's audit number is from the libc).
WITHOUT_BPF = """
import ctypes, os, platform, struct, sys
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
load, equal, answer = 0x20, 0x15, 0x06
code = [(load, 0, 0, 0), (equal, 0, 1, number), (answer, 0, 0, 0x50000 | 38), (answer, 0, 0, 0x7fff0000)]
program = b"".join(struct.pack("=HBBI", *each) for each in code)
buffer = ctypes.create_string_buffer(program)
filters = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code), ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filters, 0, 0):
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def without_bpf(gateway: LabGateway, verb: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", WITHOUT_BPF, *gateway.enforcer[1:], verb]
    done = execute(argv, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel has no seccomp filters")
    return done


def test_a_kernel_without_bpf_is_named_and_nothing_stays(idle: LabGateway) -> None:
    idle.write(idle.lab.config())
    idle.lab.gw.sysctl("net.ipv4.ip_forward", 0)
    with untouched(idle):
        done = without_bpf(idle, "run")
        assert done.returncode == 1
        assert "BPF" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 6, done.stderr


def test_looking_on_a_kernel_without_bpf(running: LabGateway) -> None:
    running.write(running.lab.config())
    with untouched(running):
        for noun in ("status", "flows", "origins"):
            done = without_bpf(running, noun)
            assert done.returncode == 1
            assert "this kernel has no BPF" in done.stderr
            assert "Traceback" not in done.stderr


def test_capabilities_of_a_user_namespace_are_not_enough(idle: LabGateway, tmp_path: Path) -> None:
    """Root in a user namespace may change nftables and addresses there, but may not load programs."""
    config = tmp_path / "enforcer.yaml"
    config.write_text(dump(idle.lab.config()))
    look = "nft list ruleset; ip address; ip -6 route show table all; tc qdisc; sysctl -a 2>&- | grep forward"
    script = f"""
        for name in in0 in1 out0; do ip link add $name type veth peer name $name-peer; done
        ({look}) > {tmp_path}/before
        {sys.executable} -m enforcer --config {config} run > {tmp_path}/said 2>&1
        echo $? > {tmp_path}/code
        ({look}) > {tmp_path}/after
    """
    done = execute(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script], check=False)
    if not (tmp_path / "code").exists():
        pytest.skip(f"no user namespaces here: {done.stderr}")
    said = (tmp_path / "said").read_text()
    assert (tmp_path / "code").read_text() == "1\n", said
    assert "Traceback" not in said
    assert "permitted" in said
    assert "root" in said or "CAP_BPF" in said
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
