"""Tests of the documented examples: the demo's gateway prints the same, except for counts and times."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from truth import running, wait_for

from lab.clients import Session, dig, tcp_ask
from lab.configuration import Document, added, changed, without
from lab.demo.stage import PERSON, READER, SITE, configuration
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, RESOLVER, Lab

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/commands.md"
# Columns are at least two spaces apart; the first column may contain words with single spaces.
COLUMNS = re.compile(r"\s{2,}")


def fenced(text: str) -> list[list[str]]:
    """The fenced blocks without a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block.strip("\n").splitlines() for language, block in found if not language]


def blocks(command: str) -> list[list[str]]:
    """The fenced blocks below the command's heading."""
    _, found, rest = PAGE.read_text(encoding="utf-8").partition(f"\n### enforcer {command}")
    assert found, command
    section = re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return fenced(section)


def asked(block: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of the command on the block's first line, and the block's other lines."""
    assert block[0].startswith("$ enforcer ")
    return shlex.split(block[0])[2:], block[1:]


def plain(line: str) -> str:
    return re.sub(r"\bpid \d+", "pid 0", line.rstrip())


def quotes(block: list[str], printed: str) -> None:
    """Assert that the output matches the block, in which a line "…" stands for any lines."""
    pattern = "".join("(?:.*\n)*" if line == "…" else re.escape(plain(line)) + "\n" for line in block)
    text = "".join(plain(line) + "\n" for line in printed.splitlines())
    assert re.fullmatch(pattern, text), "\n".join(["documented:", *block, "", "printed:", text])


@pytest.fixture(scope="module")
def config(lab: Lab) -> Document:
    return configuration(lab)


@pytest.fixture(scope="module")
def first(lab: Lab, config: Document) -> str:
    """`plan`'s output before the enforcer starts."""
    return LabGateway(lab, config).run("plan").stdout


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services, config: Document, first: str) -> Iterator[LabGateway]:
    """A gateway with the page's sessions and names, and three connections that a changed policy concerns."""
    with running(lab, config) as gateway, ExitStack() as held:
        arguments, printed = asked(blocks("session add")[0])
        quotes(printed, gateway.run(*arguments).stdout)
        gateway.run("session", "add", CLIENT[6], "--email", PERSON, "--posture", "disk-encrypted")
        for family, kind in ((4, "A"), (6, "AAAA")):
            dig(lab.client, RESOLVER[family], SITE, kind, source=READER[family])
        wait_for(lambda: len(gateway.json("hosts")) == 4)
        for _ in range(3):
            held.enter_context(Session(lab.client, ORIGIN1[4]))
        yield gateway


def test_plan_before_anything_is_enforced(first: str) -> None:
    quotes(blocks("plan")[0], first)


def test_what_the_daemon_says(enforced: LabGateway) -> None:
    quotes(blocks("run")[0], enforced.said())


@pytest.mark.parametrize("number", [0, 1], ids=["plain", "trace"])
def test_explain(enforced: LabGateway, number: int) -> None:
    arguments, printed = asked(blocks("explain")[number])
    quotes(printed, enforced.run(*arguments).stdout)


def test_explain_in_the_readme(enforced: LabGateway) -> None:
    (block,) = [each for each in fenced((ROOT / "README.md").read_text()) if each[0].startswith("$ enforcer")]
    arguments, printed = asked(block)
    quotes(printed, enforced.run(*arguments).stdout)


@pytest.mark.parametrize(
    "noun", ["policies", "egress", "origins", "flows", "reasons", "sessions", "hosts", "dns"]
)
def test_columns(enforced: LabGateway, noun: str) -> None:
    (block,) = blocks(noun)
    assert COLUMNS.split(block[0].strip()) == COLUMNS.split(enforced.run(noun).stdout.splitlines()[0].strip())


def test_policies(enforced: LabGateway) -> None:
    """Compares the rows without counters."""

    def rows(lines: list[str]) -> list[list[str]]:
        return [COLUMNS.split(line.strip())[:6] for line in lines[2:]]

    assert rows(blocks("policies")[0]) == rows(enforced.run("policies").stdout.splitlines())


def test_status(enforced: LabGateway) -> None:
    def labels(lines: list[str]) -> list[str]:
        return [COLUMNS.split(line)[0] for line in lines]

    assert labels(blocks("status")[0]) == labels(enforced.run("status").stdout.splitlines())


def test_relearn(enforced: LabGateway) -> None:
    (block,) = blocks("relearn")
    said = enforced.run("relearn").stdout.strip()
    assert [re.sub(r"\d+", "4", said).replace("flow ", "flows ")] == block


def test_changed_policies(lab: Lab, enforced: LabGateway, config: Document) -> None:
    """`plan` names the policies and the flows that would leave differently; `reload` reports its changes."""
    person = changed(config, "policies", "person", identity='identity.email == "bob@corp.example"')
    enforced.write(without(person, "policies", "bulk"))
    quotes(blocks("plan")[1], enforced.run("plan").stdout)
    more = {"name": "lax-3", "location": "lax", "ipv4": "203.0.113.12", "ipv6": "2001:db8:4::/64"}
    quotes(blocks("reload")[0], enforced.reload(added(config, "egress_ips", more)))
    enforced.reload(config)
    assert tcp_ask(lab.client, ORIGIN1[4]).address


def test_down(enforced: LabGateway) -> None:
    quotes(blocks("down")[0], enforced.run("down").stdout)
