"""Tests of an unprivileged local user: no influence on root's commands and on the daemon."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from truth import wait_for

from enforcer.control.interpreter import PYTHON
from enforcer.instance import RUN
from lab.gateway import LabGateway
from lab.netns import execute
from lab.topology import CLIENT, Lab

USER = 65534
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--")
SECRET = "a-word-of-root's-that-must-not-be-seen"
COMMAND = str(Path(sys.executable).with_name("enforcer"))


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that the user can reach; pytest's own belong to root."""
    with tempfile.TemporaryDirectory(prefix="local-users-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def victim(open_place: Path) -> Iterator[Path]:
    """A directory of root's with a file; asserts that both exist afterwards."""
    made = open_place / "victim"
    made.mkdir(mode=0o700)
    (made / "file").write_text(SECRET)
    yield made
    assert (made / "file").read_text() == SECRET and [path.name for path in made.iterdir()] == ["file"]


# --- the BPF file system and /run


PREPARED = {
    "a link where maps are": "mkdir -p {ours} && ln -s {victim} {ours}/maps-0 && ln -s {victim} {ours}/links",
    "a link to a directory": "mkdir -p {above} && ln -s {victim} {ours}",
    "a link above": "ln -s {victim} {above}",
    "a directory that others may write": "mkdir -p -m 777 {ours}",
}


@pytest.mark.parametrize("name", PREPARED)
def test_a_bpf_file_system_that_a_user_has_prepared(
    lab: Lab, gateway: LabGateway, victim: Path, name: str
) -> None:
    """Without mode=, the file system is like /tmp: any user may create directories in it (mode 1777)."""
    above = "/sys/fs/bpf/enforcer"
    ours = f"{above}/{lab.gw.cookie():x}"
    prepare = PREPARED[name].format(above=above, ours=ours, victim=victim)
    commands = " ".join(gateway.enforcer)
    script = f"""
        set -e
        mount -t bpf bpf /sys/fs/bpf
        [ "$(stat -c %a /sys/fs/bpf)" = 1777 ]
        {" ".join(AS_USER)} sh -c '{prepare}'
        ls -lR {above} > {victim.parent}/before
        set +e
        for command in run down status plan; do
            timeout 60 {commands} $command; echo "$command: $?"
        done
        ls -lR {above} > {victim.parent}/after
        rm -r {above} && chmod 700 /sys/fs/bpf  # as the hint says
        timeout 60 {commands} down; echo "mended: $?"
    """
    done = execute(["unshare", "-m", "--propagation", "private", "bash", "-c", script])
    said = done.stdout.splitlines()
    assert [line for line in said if line.startswith(("run:", "down:"))] == ["run: 1", "down: 1"], done
    assert said[-1] == "mended: 0", done
    assert done.stderr.count("error: /sys/fs/bpf/enforcer") >= 2, done
    assert f"belongs to the user {USER}" in done.stderr or f"made by the user {USER}" in done.stderr
    assert "Keep others out: chmod 700 /sys/fs/bpf" in done.stderr
    assert "Traceback" not in done.stderr
    for listing in ("before", "after"):
        assert (victim.parent / listing).read_text()
    assert (victim.parent / "before").read_text() == (victim.parent / "after").read_text()


@pytest.mark.parametrize("what", ["a directory", "a link"])
def test_a_state_directory_that_a_user_has_prepared(
    lab: Lab, gateway: LabGateway, victim: Path, what: str
) -> None:
    """/run belongs to root, so this requires a misconfigured host."""
    ours = RUN / f"{lab.gw.cookie():x}"
    RUN.mkdir(mode=0o755, exist_ok=True)
    if what == "a link":
        ours.symlink_to(victim)
    else:
        ours.mkdir()
        (ours / "state.json").symlink_to(victim / "file")
    os.chown(ours, USER, USER, follow_symlinks=False)
    try:
        for command in ("run", "down", "status", "reload"):
            done = gateway.run(command, check=False)
            assert done.returncode == 1
            assert done.stderr.startswith(f"error: {ours} "), done
            assert f"rm -r {ours}" in done.stderr
    finally:
        execute(["rm", "-r", str(ours)])


# --- the current directory, and a user's own packages


@pytest.fixture
def trap(open_place: Path) -> Iterator[Path]:
    """A user's directory and home with modules that record their execution; asserts that none ran."""
    said = open_place / "said"
    payload = f"open({str(said)!r}, 'a').write(__file__ + '\\n')\n"
    site = open_place / ".local/lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    site.mkdir(parents=True)
    for name in ("json", "click", "numpy", "encodings", "sitecustomize", "usercustomize"):
        (open_place / f"{name}.py").write_text(payload)
        (site / f"{name}.py").write_text(payload)
    (site / "trap.pth").write_text(f"import os; {payload}".replace("__file__", "'trap.pth'"))
    (open_place / "enforcer").mkdir()
    (open_place / "enforcer/__init__.py").write_text(payload)
    execute(["chown", "-R", f"{USER}:{USER}", str(open_place)])
    yield open_place
    assert not said.exists(), said.read_text()


def test_nothing_in_the_current_directory_is_run(lab: Lab, gateway: LabGateway, trap: Path) -> None:
    """Covers all commands and the processes that the daemon starts: for a reload, for many sessions."""
    inside = ["env", "-C", str(trap), f"HOME={trap}"]
    command = [COMMAND, "--netns", lab.gw.name, "--config", str(gateway.config)]
    gateway.enforcer = [*inside, *command]
    gateway.argv = [*gateway.enforcer, "run"]
    gateway.start()
    gateway.reload(lab.config(limits={"connections_per_origin": 100}))
    rows = (json.dumps({"client": f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", "email": f"{n}@corp.example"})
            for n in range(1 << 16, (1 << 16) + 40_000))  # fmt: skip
    many = lab.directory / "many.jsonl"
    many.write_text("\n".join(rows))
    assert many.stat().st_size > 1 << 20  # large enough for a separate process
    assert "40,000 sessions" in gateway.run("session", "load", str(many)).stdout
    for words in (("status",), ("plan",), ("check",), ("policy", "test", "-h"), ("relearn",), ("down",)):
        gateway.run(*words)


@pytest.mark.parametrize("module", ["enforcer", "enforcer.workers.apply", "enforcer.workers.load_sessions"])
def test_nothing_of_a_user_s_is_imported_by_our_processes(trap: Path, module: str) -> None:
    execute(["env", "-C", str(trap), f"HOME={trap}", *PYTHON, "-c", f"import {module}"])


# --- files


def as_user(*argv: str) -> None:
    execute([*AS_USER, *argv])


def test_a_session_file_that_its_writer_makes_a_link(lab: Lab, gateway: LabGateway, open_place: Path) -> None:
    """The daemon neither follows the link nor reports its content; it loads a regular file in its place."""
    secret = open_place / "shadow"
    secret.write_text(f"root:{SECRET}:19000:0:99999:7:::\n" + json.dumps({"token": SECRET}))
    secret.chmod(0o600)
    theirs = open_place / "sync"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, USER, USER)
    file = theirs / "sessions.jsonl"
    as_user("ln", "-s", str(secret), str(file))
    gateway.write(lab.config(sessions={"file": str(file)}))
    gateway.start()
    wait_for(lambda: "were not loaded" in gateway.said(), "the file's refusal")
    assert f"is reached by a link that the user {USER} made" in gateway.said()
    done = gateway.run("session", "load", str(file), check=False)
    assert done.returncode == 1 and "is reached by a link" in done.stderr

    as_user("rm", str(file))
    as_user("mkfifo", str(file))
    wait_for(lambda: "not a regular file" in gateway.said(), "the pipe's refusal")
    assert gateway.json("status")["state"] == "running"

    new = theirs / "new"
    rows = [json.dumps({"client": CLIENT[family], "email": "ann@corp.example"}) for family in (4, 6)]
    new.write_text("\n".join(rows))
    os.chown(new, USER, USER)
    as_user("mv", "-f", str(new), str(file))
    wait_for(lambda: len(gateway.json("sessions")) == 2, "the sessions")

    # A line that is no session is not repeated in the journal, although the file is the user's.
    new.write_text(secret.read_text())
    as_user("mv", "-f", str(new), str(file))
    wait_for(lambda: "not JSON" in gateway.said(), "the fault")
    assert SECRET not in gateway.said() + done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["a link of theirs", "written by every user", "a pipe"])
def test_a_configuration_that_others_decide_about(
    lab: Lab, gateway: LabGateway, open_place: Path, kind: str
) -> None:
    """The file is not applied; the configuration in force stays."""
    gateway.start()
    good = lab.write_config(lab.config(fast_path=False), "good.yaml")
    gateway.config.unlink()
    if kind == "a pipe":
        os.mkfifo(gateway.config)
    elif kind == "a link of theirs":
        gateway.config.symlink_to(good)
        os.chown(gateway.config, USER, USER, follow_symlinks=False)
    else:
        good.rename(gateway.config)
        gateway.config.chmod(0o666)
    for command in ("reload", "check", "plan"):
        done = gateway.run(command, check=False)
        assert done.returncode == 2, done
        assert done.stderr.startswith(f"{gateway.config}: is "), done
        assert not done.stdout
    assert gateway.json("status")["fast_path"]["on"] is True
    gateway.config.unlink()
    lab.write_config(lab.config(), gateway.config.name)
    assert gateway.reload() == "nothing changed\n"
