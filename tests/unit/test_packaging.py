"""Shell scripts, the Makefile, the systemd unit, the Vagrant lab, and the package list of setup.cfg."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from enforcer import instance
from enforcer.config import load
from enforcer.control import protocol, worker
from enforcer.daemon import daemon
from enforcer.errors import ConfigError
from lab import topology

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging/enforcer.service"


def run(*argv: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """The output of a program; skips the test if the program is not installed."""
    program = shutil.which(str(argv[0]))
    if program is None:
        pytest.skip(f"{argv[0]} is not installed")
    done = subprocess.run(
        [program, *map(str, argv[1:])],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def unit() -> dict[str, list[str]]:
    """The unit's settings, each with the list of its values."""
    settings: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def shell_scripts() -> list[Path]:
    return [ROOT / ".ci/run", *sorted(ROOT.glob("scripts/*.sh")), *sorted(ROOT.glob("vagrant/*.sh"))]


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_scripts_are_sound(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    run("shellcheck", "--severity=style", script)


def test_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    listed = re.findall(r"^  make (\S+) +\S", run("make", "help"), re.MULTILINE)
    assert sorted(listed) == sorted(phony[1].split())


def test_every_package_is_named_in_setup_cfg() -> None:
    """Only an installation, not a checkout, lacks a package that is not listed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split()) - {"enforcer.bpf"}
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "enforcer").glob("**/__init__.py")
    }
    assert packages == listed


def test_schema_in_docs_is_that_of_the_models() -> None:
    from enforcer.config.schema import render

    committed = (ROOT / "docs/enforcer.schema.json").read_text(encoding="utf-8")
    assert committed == render(), "run `make schema`"


def test_unit_verifies(tmp_path: Path) -> None:
    """systemd-analyze checks that the program exists: a copy of the unit names /bin/true."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8").replace("/opt/enforcer/bin/enforcer", "/bin/true")
    copy.write_text(text, encoding="utf-8")
    assert run("systemd-analyze", "verify", copy).strip() == ""


def test_unit_exposes_little() -> None:
    said = run("systemd-analyze", "security", "--offline=yes", "--threshold=30", UNIT)
    assert "Overall exposure level" in said


def test_unit_notifies_and_keeps_the_state() -> None:
    settings = unit()
    assert settings["Type"] == ["notify"]
    assert settings["ExecReload"] == ["/opt/enforcer/bin/enforcer reload"]
    assert float(settings["WatchdogSec"][0]) > 0
    assert settings["RuntimeDirectory"] == ["enforcer"]
    assert settings["RuntimeDirectoryPreserve"] == ["yes"]
    assert settings["ProtectKernelTunables"] == ["no"]
    assert "CAP_SYS_ADMIN" not in settings["CapabilityBoundingSet"][0]


def seconds(setting: str) -> float:
    (value,) = unit()[setting]
    return float(value)


def test_unit_waits_for_what_is_under_way() -> None:
    """TimeoutStopSec covers a hung change and its healing: waiting for the lock, preparing, changing."""
    hung = worker._STILL_CHANGING + worker._UNKILLABLE
    healed = instance.PATIENCE + instance._KILLED + worker._STILL_PREPARING + hung
    assert seconds("TimeoutStopSec") > hung + healed
    assert seconds("TimeoutStartSec") > protocol.PATIENCE  # applies to ExecReload too (systemd.service(5))
    at_start = daemon._ATTEMPTS * (worker._STILL_PREPARING + worker._UNKILLABLE)
    assert seconds("TimeoutStartSec") > at_start


def test_unit_tries_again_what_is_wrong() -> None:
    """Without limit, at intervals of 10 s or more: an interface that appears late makes the file faulty."""
    with pytest.raises(ConfigError, match="does not exist") as late:
        load(ROOT / "docs/enforcer.sample.yaml", interfaces={})
    assert late.value.exit_code == 2
    settings = unit()
    assert settings["Restart"] == ["on-failure"]
    assert settings["StartLimitIntervalSec"] == ["0"]
    assert "RestartPreventExitStatus" not in settings
    assert seconds("RestartSec") >= 10


def test_vagrantfile_parses() -> None:
    run("ruby", "-c", ROOT / "vagrant/Vagrantfile")


def test_vagrantfile_validates(tmp_path: Path) -> None:
    run(
        *("vagrant", "validate", "--ignore-provider"),
        cwd=ROOT / "vagrant",
        VAGRANT_HOME=str(tmp_path / "home"),
        VAGRANT_DOTFILE_PATH=str(tmp_path / "machines"),
    )


@pytest.mark.parametrize(
    "addresses",
    [
        topology.CLIENT,
        topology.GATEWAY,
        topology.SHARED,
        topology.ORIGIN1,
        topology.ORIGIN2,
        topology.RESOLVER,
        topology.PRIVATE,
    ],
    ids=lambda addresses: addresses[4],
)
def test_virtual_machines_have_the_addresses_of_the_lab(addresses: dict[int, str]) -> None:
    script = (ROOT / "vagrant/network.sh").read_text(encoding="utf-8")
    for address in addresses.values():
        assert re.search(rf" {re.escape(address)}[ /]", script)


def test_vagrantfile_and_network_script_agree_on_the_interfaces() -> None:
    vagrantfile = (ROOT / "vagrant/Vagrantfile").read_text(encoding="utf-8")
    script = (ROOT / "vagrant/network.sh").read_text(encoding="utf-8")
    given = set(re.findall(r'=> "([0-9a-f]{12})"', vagrantfile))
    known = {mac.replace(":", "") for mac in re.findall(r"name (\S{17}) ", script)}
    assert given == known
    assert len(given) == 4
