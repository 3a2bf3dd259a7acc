"""Tests of the commands, as a user or a script calls them, on a gateway with traffic."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from snapshot import difference, snapshot

from lab.clients import Session, UdpFlow, curl, fate, ping, tcp_ask, udp_ask, url
from lab.configuration import LAX1, changed
from lab.gateway import LabGateway
from lab.netns import Namespace, execute
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, GATEWAY, ORIGIN1, ORIGIN2, PRIVATE, SHARED, Lab

families = pytest.mark.parametrize("family", [4, 6])
LIMIT = 40  # within the reach of sockets, and more than the UDP flows that all tests here leave

# The fields that the specification names; more may follow them.
FIELDS = {
    "status": "state since location interfaces proxy egress_ips policies flows refused leaks_prevented "
    "daemon_pid versions config_file applied fast_path not_attached half_done tables",
    "policies": "precedence name enabled traffic egress fallback matched",
    "egress": "name location ipv4 ipv6 available active busiest_origin utilisation",
    "origins": "egress source_ip protocol origin_ip origin_port active limit utilisation peak total refused",
    "flows": "protocol client_ip client_port origin_ip origin_port egress source_ip source_port policy state "
    "path packets bytes age idle fast_packets kernel_packets",
    "reasons": "reason packets flows",
    "explain": "verdict reason policy egress source_ip active limit",
    "plan": "",
}
NOUNS = tuple(FIELDS)
QUESTION = ("--src", CLIENT[4], "--dst", ORIGIN1[4], "--protocol", "tcp", "--dport", "9000")
IMPORTS_NOTHING_HEAVY = """
import runpy, sys
sys.argv = ["enforcer", *sys.argv[1:]]
try:
    runpy.run_module("enforcer", run_name="__main__")
except SystemExit as done:
    code = done.code
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"bcc", "pydantic", "ruamel"})
print("\\nheavy:", *heavy, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def gateway(lab: Lab, services: Services) -> Iterator[LabGateway]:
    """One daemon for this module, with a limit that a test can reach."""
    running = LabGateway(lab, lab.config(limits={"connections_per_origin": LIMIT})).start()
    yield running
    running.stop()
    running.run("down", check=False)


@pytest.fixture
def traffic(lab: Lab, gateway: LabGateway) -> Iterator[None]:
    """Every kind of traffic in both families: live connections, refusals, shared and untouched traffic."""
    with contextlib.ExitStack() as held:
        for family in (4, 6):
            held.enter_context(Session(lab.client, ORIGIN1[family]))
            held.enter_context(UdpFlow(lab.client, ORIGIN1[family])).ask()
            held.enter_context(Session(lab.client, ORIGIN2[family]))
            fate_of(lambda family=family: tcp_ask(lab.client, ORIGIN2[family], 8082))
            ping(lab.client, ORIGIN1[family])
            tcp_ask(lab.client, CLIENT2[family])
        yield


def arguments(noun: str) -> tuple[str, ...]:
    return (noun, *QUESTION) if noun == "explain" else (noun,)


def fate_of(attempt: Callable[[], object]) -> str:
    """The result of an attempt in one word; "answered" if it succeeds."""
    try:
        attempt()
    except OSError as error:
        return fate(error)
    return "answered"


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize("noun", NOUNS)
def test_json_is_one_document_with_the_fields_in_their_order(gateway: LabGateway, noun: str) -> None:
    done = gateway.run(*arguments(noun), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    rows = found if isinstance(found, list) else [found]
    assert rows or noun == "plan"
    wanted = FIELDS[noun].split()
    for row in rows:
        assert list(row)[: len(wanted)] == wanted
        assert list(row) == list(rows[0])


@pytest.mark.usefixtures("traffic")
def test_json_values_are_what_they_say(lab: Lab, gateway: LabGateway) -> None:
    status, flows = gateway.json("status"), gateway.json("flows")
    origins, egress = gateway.json("origins"), gateway.json("egress")
    assert status["state"] == "running"
    assert status["daemon_pid"] == gateway.pid
    assert status["interfaces"] == {"inside": ["in0", "in1"], "outside": ["out0"], "other": []}
    assert status["proxy"] == {"tcp": True, "udp": True}
    assert status["policies"] == 4
    assert status["refused"] >= 2
    assert status["flows"] == sum(row["active"] for row in origins) >= 6
    assert {row["name"]: row["available"] for row in egress} == {"lax-1": True, "lax-2": True, "nyc-1": False}
    assert sum(row["active"] for row in egress) == sum(
        row["active"] for row in origins if row["egress"] != "shared"
    )
    live = [row for row in flows if row["state"] == "ESTABLISHED"]
    assert {row["policy"] for row in live if row["origin_ip"] in ORIGIN1.values()} == {"bank"}
    assert all(row["source_port"] and row["path"] in ("kernel", "fast") for row in live)
    assert all(row["packets"] == row["fast_packets"] + row["kernel_packets"] for row in flows)
    assert status["fast_path"]["on"] and 0 <= status["fast_path"]["flows"] <= len(flows)
    assert [row["age"] for row in flows] == sorted(row["age"] for row in flows)
    assert all(row["limit"] == LIMIT and row["utilisation"] == row["active"] / LIMIT for row in origins)
    table = lab.gw.run("conntrack", "-L", check=False).stdout
    for row in live:
        assert f"dst={row['source_ip']} sport={row['origin_port']} dport={row['source_port']}" in table
    seen = {row["reason"]: row for row in gateway.json("reasons")}
    assert seen["policy"]["verdict"] == "dedicated"
    assert seen["unavailable"]["flows"] >= 2
    assert seen["icmp"]["packets"] >= 2
    assert seen["inside"]["packets"] >= 2
    policies = {row["name"]: row for row in gateway.json("policies")}
    assert [row["precedence"] for row in policies.values()] == [10, 20, 30, 40]
    assert policies["bank"]["matched"] >= 4
    assert (policies["travel"]["egress"], policies["travel"]["fallback"]) == ("nyc-1", "lax-2")
    assert (policies["shop"]["egress"], policies["shop"]["fallback"]) == ("default", None)


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize(
    ("noun", "words"),
    [
        ("status", ("enforcing", "location", "lax", "in0, in1", "out0", "TCP, UDP")),
        ("policies", ("Policy", "bank", "net.dst.ip in {198.18.1.0/24", "nyc-1", "lax-2")),
        ("egress", ("Egress", "203.0.113.10", "2001:db8:1::/64", "yes", "no", ":9000")),
        ("origins", ("Source", "198.18.1.10", "2001:db8:a1::10", " %")),
        ("flows", ("Client", "10.0.1.2", "fd00:1::2", "ESTABLISHED", "Path")),
        ("reasons", ("Reason", "unavailable", "a policy names this egress IP")),
        ("plan", ("nothing to do",)),
    ],
)
def test_tables_are_for_people(gateway: LabGateway, noun: str, words: tuple[str, ...]) -> None:
    done = gateway.run(noun)
    assert (done.returncode, done.stderr) == (0, "")
    assert [word for word in words if word not in done.stdout] == []
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(done.stdout)


def test_a_reader_that_has_enough_is_no_error(gateway: LabGateway) -> None:
    command = " ".join(gateway.enforcer)
    done = execute(["bash", "-c", f"set -o pipefail; {command} reasons --json | head -1"], check=False)
    assert (done.stdout, done.stderr) == ("[\n", "")


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize("noun", [noun for noun in NOUNS if noun != "plan"])
def test_looking_loads_neither_compiler_nor_validator(gateway: LabGateway, noun: str) -> None:
    options = gateway.enforcer[gateway.enforcer.index("--netns") :]
    argv = [sys.executable, "-c", IMPORTS_NOTHING_HEAVY, *options, *arguments(noun)]
    assert execute(argv).stderr.splitlines()[-1] == "heavy:"


# --- where a command reads the gateway's state


def test_another_namespace_and_none(lab: Lab, gateway: LabGateway) -> None:
    enforcer = [sys.executable, "-m", "enforcer"]
    missing = execute([*enforcer, "--netns", "no-such-namespace", "status"], check=False)
    assert missing.returncode == 2
    assert "no network namespace no-such-namespace" in missing.stderr
    assert lab.gw.name in missing.stderr
    assert missing.stdout == ""
    elsewhere = execute([*enforcer, "--netns", lab.client.name, "status", "--json"])
    assert json.loads(elsewhere.stdout)["state"] == "down"
    for noun in ("flows", "egress", "origins", "policies", "reasons"):
        done = execute([*enforcer, "--netns", lab.client.name, noun], check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert "nothing is enforced on this gateway" in done.stderr
    done = execute([*enforcer, "--netns", lab.client.name, "reload"], check=False)
    assert done.returncode == 1
    assert "no daemon runs" in done.stderr


@pytest.mark.usefixtures("traffic")
def test_from_within_the_namespace_the_gateway_looks_the_same(lab: Lab, gateway: LabGateway) -> None:
    """ip-netns-exec(8) mounts another /sys over the machine's, which hides the pins."""
    enforcer = [sys.executable, "-m", "enforcer"]
    # An idle flow stays on the fast path for seconds.
    outside = {**gateway.json("status"), "fast_path": None}
    for enter in (["ip", "netns", "exec", lab.gw.name], ["nsenter", f"--net={lab.gw.path}"]):
        inside = json.loads(execute([*enter, *enforcer, "status", "--json"]).stdout)
        assert inside["fast_path"]["on"]
        assert {**inside, "fast_path": None} == outside
        flows = json.loads(execute([*enter, *enforcer, "flows", "--json"]).stdout)
        assert len(flows) == len(gateway.json("flows"))
        explained = json.loads(execute([*enter, *enforcer, "explain", *QUESTION, "--json"]).stdout)
        assert explained["egress"] == "lax-1"


def test_a_daemon_started_by_ip_netns_exec_is_seen_from_outside(machine: None) -> None:
    with Lab(f"lab{os.getpid()}-exec") as lab:
        gateway = LabGateway(lab)
        plain = [word for word in gateway.argv if word not in ("--netns", lab.gw.name)]
        gateway.argv = ["ip", "netns", "exec", lab.gw.name, *plain]
        before = snapshot(lab.gw)
        gateway.start()
        status = gateway.json("status")
        assert (status["state"], status["daemon_pid"]) == ("running", gateway.pid)
        assert gateway.run("plan").stdout.startswith("nothing to do")
        assert gateway.reload() == "nothing changed\n"
        done = execute(["ip", "netns", "exec", lab.gw.name, sys.executable, "-m", "enforcer", "down"])
        assert "removed programs and maps" in done.stdout
        assert difference(before, snapshot(lab.gw)) == ""


# --- help, usage, completion


def test_help_says_what_there_is(gateway: LabGateway) -> None:
    text = execute([sys.executable, "-m", "enforcer", "--help"]).stdout
    for word in ("run", "reload", "down", "check", *NOUNS, "--netns", "--config", "completion"):
        assert word in text
    for command in ("run", "reload", "down", "check", *NOUNS, "completion"):
        done = execute([sys.executable, "-m", "enforcer", command, "-h"])
        assert f"Usage: enforcer {command}" in done.stdout
        assert ("--json" in done.stdout) == (command in NOUNS)
    assert "enforcer, version" in execute([sys.executable, "-m", "enforcer", "--version"]).stdout


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("statsu",), ("No such command", "statsu")),
        (("status", "--jsn"), ("No such option",)),
        (("explain",), ("--src",)),
        (("explain", *QUESTION[:-2]), ("--dport is needed for tcp",)),
        (("explain", *QUESTION[:-1], "70000"), ("70000",)),
        (("explain", "--src", "10.0.1.300", *QUESTION[2:]), ("'10.0.1.300' is not an IPv4 or IPv6 address",)),
        (("explain", "--src", CLIENT[6], *QUESTION[2:]), ("different families",)),
        (("explain", *QUESTION[:5], "gre"), ("gre",)),
        (("completion", "tcsh"), ("tcsh",)),
    ],
)
def test_wrong_usage_is_exit_code_2(
    gateway: LabGateway, wrong: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = gateway.run(*wrong, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    text = execute([sys.executable, "-m", "enforcer", "completion", shell]).stdout
    assert "_ENFORCER_COMPLETE" in text
    if shell == "bash":
        assert execute(["bash", "-n"], text, check=False).returncode == 0


def test_completion_completes() -> None:
    def complete(*words: str) -> set[str]:
        environment = {
            "_ENFORCER_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("enforcer", *words)),
            "COMP_CWORD": str(len(words)),
            "PATH": "/usr/bin:/bin",
        }
        code = "from enforcer.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert complete("re") == {"reload", "relearn", "reasons"}
    assert {"--src", "--dst", "--dport"} <= complete("explain", "--")
    assert complete("explain", "--protocol", "") == {"tcp", "udp", "icmp"}


# --- explain


def ask_explain(gateway: LabGateway, source: str, to: str, protocol: str, port: int | None) -> dict[str, Any]:
    options = ["--src", source, "--dst", to, "--protocol", protocol]
    options += ["--dport", str(port)] if port is not None else []
    found: dict[str, Any] = gateway.json("explain", *options)
    return found


PORTS = (53, 80, 8081, 8082, 8443, 9000)


@families
def test_explain_foretells_what_happens(lab: Lab, gateway: LabGateway, family: int) -> None:
    origins = (ORIGIN1, ORIGIN2, PRIVATE)
    table = itertools.product(origins, ("tcp", "udp"), PORTS, (CLIENT, CLIENT2))
    for origin, protocol, port, client in table:
        if protocol == "udp" and port == 80:
            continue  # no server listens there
        source = client[family]
        namespace = lab.client if client is CLIENT else lab.client2
        foretold = ask_explain(gateway, source, origin[family], protocol, port)
        where = (source, origin[family], protocol, port, foretold)
        became = address_of(namespace, origin[family], protocol, port)
        if foretold["verdict"] == "refused":
            assert became in ("refused", "prohibited"), where
        else:
            assert became == foretold["source_ip"], where
    ping_says = ask_explain(gateway, CLIENT[family], ORIGIN1[family], "icmp", None)
    assert (ping_says["verdict"], ping_says["source_ip"]) == ("shared", SHARED[family])
    for to in (GATEWAY[family], CLIENT2[family]):
        assert ask_explain(gateway, CLIENT[family], to, "tcp", 9000)["verdict"] == "untouched"


@families
def test_explain_of_what_goes_nowhere(lab: Lab, gateway: LabGateway, family: int) -> None:
    own = ip_network(LAX1[family])[5 if family == 6 else 0]
    told = ask_explain(gateway, CLIENT[family], str(own), "tcp", 22)
    assert (told["verdict"], told["reason"]) == ("blocked", "unsolicited")
    with pytest.raises(TimeoutError):
        tcp_ask(lab.client, str(own), 22, timeout=0.3)
    router = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}[family]
    lab.gw.ip(f"route del default via {router}")
    try:
        told = ask_explain(gateway, CLIENT[family], ORIGIN1[family], "tcp", 9000)
    finally:
        lab.gw.ip(f"route add default via {router}")
    assert (told["verdict"], told["reason"]) == ("untouched", "unrouted")


def address_of(namespace: Namespace, to: str, protocol: str, port: int) -> str:
    """The source address that the origin saw, or the connection's fate."""
    if protocol == "tcp" and port not in (53, 9000):
        status, body = curl(namespace, url(to, port, "https" if port == 8443 else "http"))
        return body.split()[0] if status == 200 else "refused"
    try:
        return (tcp_ask if protocol == "tcp" else udp_ask)(namespace, to, port).address
    except OSError as error:
        return fate(error)


@families
def test_explain_knows_the_limit(lab: Lab, gateway: LabGateway, family: int) -> None:
    with contextlib.ExitStack() as held:
        for number in range(LIMIT):
            if number in (0, 1, LIMIT - 1):
                told = ask_explain(gateway, CLIENT[family], PRIVATE[family], "tcp", 9000)
                assert (told["verdict"], told["active"], told["limit"]) == ("shared", number, LIMIT)
            held.enter_context(Session(lab.client, PRIVATE[family]))
        told = ask_explain(gateway, CLIENT[family], PRIVATE[family], "tcp", 9000)
        assert (told["verdict"], told["reason"], told["active"]) == ("refused", "limit", LIMIT)
        assert fate_of(lambda: tcp_ask(lab.client, PRIVATE[family])) == "refused"
    assert ask_explain(gateway, CLIENT[family], PRIVATE[family], "tcp", 9000)["verdict"] == "shared"


@families
def test_explain_follows_a_reload(lab: Lab, gateway: LabGateway, family: int) -> None:
    config = lab.config(limits={"connections_per_origin": LIMIT})
    try:
        gateway.reload(changed(config, "policies", "bank", egress="default"))
        told = ask_explain(gateway, CLIENT[family], ORIGIN1[family], "tcp", 9000)
        assert (told["verdict"], told["policy"], told["source_ip"]) == ("shared", "bank", SHARED[family])
        assert tcp_ask(lab.client, ORIGIN1[family]).address == SHARED[family]
    finally:
        gateway.reload(config)
    assert ask_explain(gateway, CLIENT[family], ORIGIN1[family], "tcp", 9000)["egress"] == "lax-1"


def test_looking_changes_nothing(lab: Lab, gateway: LabGateway, traffic: None) -> None:
    before = snapshot(lab.gw)
    counts = settled(gateway)
    for noun in NOUNS:
        gateway.run(*arguments(noun))
        gateway.run(*arguments(noun), "--json")
    for family in (4, 6):
        for source in (CLIENT[family], "10.0.1.77" if family == 4 else "fd00:1::77"):
            ask_explain(gateway, source, ORIGIN2[family], "udp", 4433)
            ask_explain(gateway, source, ORIGIN2[family], "tcp", 8082)
    assert difference(before, snapshot(lab.gw)) == ""
    assert settled(gateway) == counts


def settled(gateway: LabGateway) -> dict[str, Any]:
    """All counts but those of the kernel's own packets (neighbour discovery, routers)."""
    quiet = {"local", "not-ip"}
    return {
        "reasons": [row for row in gateway.json("reasons") if row["reason"] not in quiet],
        # UDP flows end meanwhile.
        "origins": [{**row, "closed": 0} for row in gateway.json("origins") if row["protocol"] == "tcp"],
        "flows": sorted(
            (row["client_ip"], row["client_port"], row["origin_ip"], row["origin_port"], row["packets"])
            for row in gateway.json("flows")
            if row["state"] == "ESTABLISHED"
        ),
        "policies": [(row["name"], row["matched"]) for row in gateway.json("policies")],
    }
