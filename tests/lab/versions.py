"""Other versions of the program, made from copies of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import enforcer
from lab.gateway import LabGateway


def program_copy(target: Path, edit: Callable[[Path], None]) -> Path:
    """A copy of the package after ``edit`` changed it; ``edit`` gets the copy's ``bpf`` directory."""
    copy = target / "enforcer"
    ignored = shutil.ignore_patterns("__pycache__", "bpf")
    shutil.copytree(Path(enforcer.__file__).parent, copy, ignore=ignored)
    shutil.copytree(Path(str(files("enforcer.bpf"))), copy / "bpf", ignore=ignored)
    edit(copy / "bpf")
    return target


def version_at(commit: str, target: Path) -> Path:
    """The program at a commit of this repository; requires its history."""
    repository = Path(__file__).parents[2]
    archive = ["git", "-c", "safe.directory=*", "-C", str(repository), "archive", commit, "enforcer", "bpf"]
    done = subprocess.run(archive, capture_output=True, check=False)
    assert done.returncode == 0, f"no history of {repository} up to {commit}: {done.stderr.decode()}"
    subprocess.run(["tar", "-x", "-C", str(target)], input=done.stdout, check=True)
    (target / "bpf").rename(target / "enforcer" / "bpf")
    return target


def impatient(target: Path) -> Path:
    """A version that accepts any timer, so tests need not wait for minutes; its BPF programs are the same."""

    def edit(bpf: Path) -> None:
        models = bpf.parent / "config" / "models.py"
        text, changed = re.subn(r"Seconds\(\d+,", "Seconds(1,", models.read_text())
        assert changed == 7
        models.write_text(text)

    return program_copy(target, edit)


def use_copy(gateway: LabGateway, place: Path) -> None:
    """Make the gateway's daemon and commands run from that copy."""
    paths = os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH")]))
    prefix = ["env", "-C", str(place), f"PYTHONPATH={paths}"]
    gateway.enforcer = [*prefix, *gateway.enforcer]
    gateway.argv = [*gateway.enforcer, "run"]
