"""The commands in-process: their output for results and errors of the library."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from enforcer import instance as instances
from enforcer.cli import app, output
from enforcer.cli.app import NOUNS, OTHERS, VERBS, entry
from enforcer.control import protocol, worker
from enforcer.daemon import systemd
from enforcer.datapath import syscall
from enforcer.errors import (
    BusyError,
    ConfigError,
    EnforcerError,
    Fault,
    KernelError,
    LayoutError,
    LostPinError,
    PrivilegeError,
    UsageError,
)
from enforcer.gateway import gateway, invalidate_fast_path, reader, teardown
from enforcer.instance import Instance
from enforcer.kernel import namespace
from enforcer.workers import apply

COOKIE = 0x2A
QUESTION = ["--src", "10.0.1.2", "--dst", "198.18.1.10", "--protocol", "tcp", "--dport", "443"]
FAULTS = [
    Fault("/etc/e.yaml", 7, "location: mars is no key of `locations`", 3),
    Fault("/etc/e.yaml", 2, "unknown key"),
]


@pytest.fixture(autouse=True)
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """A gateway without state, with its run directory below ``tmp_path``."""
    monkeypatch.setattr(instances, "RUN", tmp_path / "run")
    monkeypatch.setattr(namespace, "netns_cookie", lambda: COOKIE)
    # No command may change the machine's network.
    monkeypatch.setattr(gateway.Gateway, "apply", raising(AssertionError("applied")))
    monkeypatch.setattr(teardown, "remove_everything", raising(AssertionError("down")))
    return Instance(COOKIE)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(entry, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def arguments(command: str) -> list[str]:
    more = {"explain": QUESTION, "session": ["remove", "10.0.1.2"]}
    return [command, *more.get(command, [])]


def raising(error: Exception) -> Callable[..., Any]:
    def act(*_: object, **__: object) -> Any:
        raise error

    return act


# --- errors


@pytest.mark.parametrize("noun", [noun for noun in NOUNS if noun not in ("status", "plan")])
def test_nothing_is_enforced(noun: str) -> None:
    result = run(*arguments(noun))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "error: nothing is enforced on this gateway",
        "Start the daemon: enforcer run",
    ]


def test_status_of_nothing() -> None:
    result = run("status", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["state"], document["daemon_pid"], document["flows"]) == ("down", None, None)
    text = run("status").stdout
    assert "nothing is enforced" in text


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KernelError("no such thing"), 1, ["error: no such thing"]),
        (PrivilegeError("not permitted", "Run as root."), 1, ["error: not permitted", "Run as root."]),
        (BusyError("pid 7"), 1, ["error: pid 7"]),
        (LayoutError("other maps", "down, then run"), 1, ["error: other maps", "down, then run"]),
        (UsageError("no such namespace"), 2, ["error: no such namespace"]),
        (ConfigError(FAULTS), 2, [str(FAULTS[1]), str(FAULTS[0])]),
        (
            protocol.ReportedError(protocol.report_of(ConfigError(FAULTS))),
            2,
            [str(FAULTS[1]), str(FAULTS[0])],
        ),
        (protocol.ReportedError({"error": "x", "hint": "do y", "exit_code": 1}), 1, ["error: x", "do y"]),
    ],
)
def test_an_error_is_a_message_and_a_code(
    monkeypatch: pytest.MonkeyPatch, error: EnforcerError, code: int, said: list[str]
) -> None:
    monkeypatch.setattr(teardown, "tear_down", raising(error))
    result = run("down")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.splitlines() == said


@pytest.mark.parametrize("verb", ["check", "plan"])
def test_no_file(verb: str, tmp_path: Path) -> None:
    result = run("--config", str(tmp_path / "nowhere.yaml"), verb)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nowhere.yaml" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_namespace_that_is_not_there() -> None:
    result = run("--netns", "no-such-one", "status")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: there is no network namespace no-such-one")


def test_a_kernel_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "netns_cookie", raising(KernelError("reading the cookie", "Linux 5.14")))
    for command in (*VERBS, *NOUNS):
        if command not in ("check", "plan"):
            result = run(*arguments(command))
            assert (result.exit_code, result.stderr) == (1, "error: reading the cookie\nLinux 5.14\n"), (
                command
            )


@pytest.mark.parametrize(
    ("number", "kind", "word"),
    [
        (1, PrivilegeError, "not permitted"),
        (13, PrivilegeError, "not permitted"),
        (38, KernelError, "this kernel has no BPF"),
        (12, KernelError, "ENOMEM"),
        (9999, KernelError, "9999"),
    ],
)
def test_errors_of_bpf(number: int, kind: type[EnforcerError], word: str) -> None:
    error = syscall.explain_error(OSError(number, os.strerror(number)), "reading the map flows")
    assert type(error) is kind
    assert error.message.startswith("reading the map flows: ")
    assert word in error.message


def test_a_state_without_maps(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bpffs the error for root is a lost pin; for other users it is a lack of privileges."""
    from enforcer.gateway.state import State

    instance.create()
    State(config={"location": "lax"}).save(instance.state_file)
    monkeypatch.setattr(reader.bpffs, "find_bpffs", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(LostPinError, match="no BPF file system is mounted"):
        reader.GatewayReader(instance)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(PrivilegeError, match="cannot be read"):
        reader.GatewayReader(instance)


# --- verbs


def test_down_prints_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "tear_down", lambda _: ["ended the daemon (pid 7)", "removed addresses"])
    result = run("down")
    assert (result.exit_code, result.stdout) == (0, "ended the daemon (pid 7)\nremoved addresses\n")


@pytest.mark.parametrize(
    ("flows", "said"),
    [
        (0, "invalidated the fast-path entries of 0 flows\n"),
        (40000, "invalidated the fast-path entries of 40,000 flows\n"),
        (None, "the fast path is off: it has no entries\n"),
    ],
)
def test_relearn_says_what_it_did(monkeypatch: pytest.MonkeyPatch, flows: int | None, said: str) -> None:
    monkeypatch.setattr(invalidate_fast_path, "invalidate_entries", lambda _: flows)
    result = run("relearn")
    assert (result.exit_code, result.stdout) == (0, said)


def test_relearn_where_nothing_is_enforced(instance: Instance) -> None:
    """The command creates no directory."""
    result = run("relearn")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: nothing is enforced on this gateway\n")
    assert not instance.directory.exists()


class Answering:
    """Stands in for a daemon: holds its lock and sends one answer on its socket."""

    def __init__(self, instance: Instance, answer: bytes | None):
        self.instance = instance
        self.answer = answer
        self.request = b""

    def __enter__(self) -> Answering:
        self.lock = self.instance.daemon_lock()
        self.lock.__enter__()
        self.server = protocol.listen(self.instance.control_socket)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        return self

    def _serve(self) -> None:
        connection, _ = self.server.accept()
        with connection:
            self.request = connection.recv(4096)
            if self.answer is not None:
                connection.sendall(self.answer)

    def __exit__(self, *_: object) -> None:
        self.thread.join(10)
        self.server.close()
        self.lock.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("answer", "code", "stdout", "stderr"),
    [
        ({"operations": ["switch"], "warnings": ["one city"]}, 0, "switch\n", "warning: one city\n"),
        ({"operations": [], "warnings": []}, 0, "nothing changed\n", ""),
        (
            {"operations": ["switch"], "restored": ["attach it"], "warnings": []},
            0,
            "restored: attach it\nswitch\n",
            "",
        ),
        ({"error": "e.yaml:1: wrong", "hint": None, "exit_code": 2}, 2, "", "e.yaml:1: wrong\n"),
        ({"error": "busy", "hint": "wait", "exit_code": 1}, 1, "", "error: busy\nwait\n"),
    ],
)
def test_reload_prints_the_daemons_answer(
    instance: Instance, answer: dict[str, Any], code: int, stdout: str, stderr: str
) -> None:
    with Answering(instance, json.dumps(answer).encode() + b"\n") as daemon_:
        result = run("reload")
    assert json.loads(daemon_.request) == {"request": "reload"}
    assert (result.exit_code, result.stdout, result.stderr) == (code, stdout, stderr)


def test_a_daemon_that_hangs_up(instance: Instance) -> None:
    with Answering(instance, None):
        result = run("reload")
    assert result.exit_code == 1
    assert "ended before it answered" in result.stderr


def test_a_daemon_that_does_not_listen(instance: Instance) -> None:
    with instance.daemon_lock():
        result = run("reload")
    assert result.exit_code == 1
    assert "the daemon does not answer" in result.stderr


def test_ctrl_c_ends_down_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(teardown, "tear_down", interrupted)
    result = run("down")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "error: interrupted: some of it may be removed already",
        "`enforcer down` removes the rest, `enforcer run` installs everything again.",
    ]


def test_a_daemon_that_does_not_answer_in_time(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon has the request and executes it later."""
    monkeypatch.setitem(protocol.ask.__kwdefaults__, "patience", 0.2)
    with instance.daemon_lock(), closing(protocol.listen(instance.control_socket)):
        result = run("reload")
    assert result.exit_code == 1
    assert "may go on with `reload`" in result.stderr.splitlines()[0]


def test_reload_without_a_daemon() -> None:
    result = run("reload")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: no daemon runs on this gateway\nStart it: enforcer run\n",
    )


def test_a_second_daemon(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "start", raising(AssertionError("nothing may be applied")))
    with instance.daemon_lock():
        result = run("run")
    assert result.exit_code == 1
    assert f"another daemon enforces on this gateway: pid {os.getpid()}" in result.stderr


def test_an_applying_process_that_dies(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PYTHON", ("/bin/false",))
    result = run("run")
    assert result.exit_code == 1
    assert "ended with exit code 1 and no result" in result.stderr
    assert not instance.directory.exists()


def test_the_applying_process_reports_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(apply, "apply_file", raising(ConfigError(FAULTS)))
    assert apply.main(["/etc/e.yaml"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report == {"error": f"{FAULTS[1]}\n{FAULTS[0]}", "hint": None, "exit_code": 2}


@pytest.mark.parametrize("request_", [b"", b"\n", b"{\n", b"[1]\n", b'{"request": "sing"}\n', b"\xff\n"])
def test_requests_that_make_no_sense(request_: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(request_)
        theirs.shutdown(socket.SHUT_WR)
        caller = protocol.ControlConnection(ours)
        request = caller.receive()
        while request is None:  # data and end arrive separately
            request = caller.receive()
        assert request in ({}, {"request": "sing"})


# --- systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@enforcer-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else name)
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        systemd.notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    systemd.notify("nobody listens")  # no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("nobody asked")


def test_watchdog_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert systemd.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval() == 15


# --- formatting


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (output.number, 40000, "40,000"),
        (output.percent, 0.125, "12.5 %"),
        (output.size, 0, "0 B"),
        (output.size, 1023, "1023 B"),
        (output.size, 1536, "1.5 KiB"),
        (output.size, 5 << 40, "5.0 TiB"),
        (output.size, 5 << 50, "5120.0 TiB"),
        (output.duration, 0.04, "0.0 s"),
        (output.duration, 59.94, "59.9 s"),
        (output.duration, 61, "1:01"),
        (output.duration, 3600, "1:00:00"),
        (output.duration, 86399, "23:59:59"),
        (output.duration, 90000, "1 d 1 h"),
        (output.yes, True, "yes"),
        (output.yes, False, "no"),
    ],
)
def test_values_are_written_for_people(write: Callable[[Any], str], value: Any, text: str) -> None:
    assert write(value) == text


def test_a_table_has_a_row_for_each_row_and_dashes_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    columns = (output.Column("name", "Name"), output.Right("count", "Count", output.number))
    rows: list[dict[str, Any]] = [{"name": "x" * 300, "count": 1234}, {"name": None, "count": 5}]
    output.print_table(rows, columns, "nothing")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Name", "Count"]
    # A pipe has no width, so no line is folded.
    assert [line.split() for line in lines if line.strip()][-2:] == [["x" * 300, "1,234"], ["-", "5"]]
    output.print_table([], columns, "There is nothing.")
    assert capsys.readouterr().out == "There is nothing.\n"


def test_markup_in_a_value_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    """Users choose the names of policies: rich must print [bold] and [/] as text."""
    columns = (output.Column("name", "Name"),)
    output.print_table([{"name": "[bold]x[/]"}, {"name": "[/]"}], columns, "")
    assert "[bold]x[/]" in capsys.readouterr().out


# --- help


def test_help_lists_every_command_apart_by_what_it_does() -> None:
    text = run("--help").stdout
    verbs, nouns = text.index("Verbs change"), text.index("Nouns show")
    for name in VERBS:
        assert verbs < text.index(f"\n  {name} ") < nouns, name
    for name in NOUNS:
        assert text.index(f"\n  {name} ", nouns) > nouns, name


@pytest.mark.parametrize("name", [*VERBS, *NOUNS, *OTHERS])
def test_every_command_has_help(name: str) -> None:
    command = app.Commands().get_command(click.Context(entry), name)
    assert command is not None
    assert isinstance(command, app.Command)
    assert len(command.get_short_help_str(80)) > 20
    options = {option for parameter in command.params for option in parameter.opts}
    assert ("--json" in options) == (name in NOUNS)
    assert run(name, "-h").exit_code == 0


def test_an_unknown_command() -> None:
    result = run("statsu")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such command 'statsu'" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "_ENFORCER_COMPLETE" in run("completion", shell).stdout


def test_a_reader_that_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "entry", raising(BrokenPipeError()))
    with (
        pytest.raises(SystemExit) as ended,
        Path(os.devnull).open("w") as sink,
        monkeypatch.context() as patch,
    ):
        patch.setattr(app.sys, "stderr", sink)
        app.main()
    assert ended.value.code == 0
