"""Requests to the daemon: each gets an answer, also invalid ones."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from enforcer.control import protocol
from enforcer.control.protocol import ControlConnection
from enforcer.daemon.loop import Loop
from enforcer.daemon.requests import Requests
from enforcer.daemon.session_manager import is_large
from enforcer.errors import EnforcerError, UsageError

Ask = Callable[[bytes], dict[str, Any]]


def wrong(request: Mapping[str, Any], caller: ControlConnection) -> dict[str, Any]:
    raise KeyError("unexpected")


@pytest.fixture
def path(tmp_path: Path, said: list[str]) -> Iterator[Path]:
    """The socket of a loop that runs in a thread."""
    ending = threading.Event()
    with closing(Loop()) as loop:
        loop.timer(lambda: 0.02, 0.0)
        handlers = {"echo": lambda request, _: dict(request), "wrong": wrong}
        with closing(Requests(loop, tmp_path / "control", handlers)):
            thread = threading.Thread(target=loop.run, args=(lambda: not ending.is_set(),))
            thread.start()
            try:
                yield tmp_path / "control"
            finally:
                ending.set()
                thread.join()


def test_a_request_is_handled_by_name(path: Path) -> None:
    assert protocol.ask(path, "echo", content=[1]) == {"request": "echo", "content": [1]}


@pytest.mark.skipif(os.geteuid() != 0, reason="missing: root, to ask as another user")
def test_another_user_is_not_heard(said: list[str]) -> None:
    """Also if the modes of directory and socket admit it; root's requests are answered."""
    with (
        tempfile.TemporaryDirectory(prefix="control-") as place,
        closing(Loop()) as loop,
        closing(Requests(loop, Path(place, "control"), {"echo": lambda request, _: dict(request)})),
    ):
        Path(place).chmod(0o755)
        Path(place, "control").chmod(0o666)
        child = os.fork()
        if not child:
            code = 1
            try:
                os.setresuid(65534, 65534, 65534)
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
                    caller.settimeout(30)
                    caller.connect(str(Path(place, "control")))
                    with suppress(OSError):
                        caller.sendall(b'{"request": "echo"}\n')
                        code = len(caller.recv(100))
                    code = code if code > 1 else 0
            finally:
                os._exit(code)
        loop.timer(lambda: 0.02, 0.0)
        ended: list[int] = []

        def goes_on() -> bool:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                ended.append(status)
            return not pid

        loop.run(goes_on)
        assert ended == [0]
        ours = threading.Thread(
            target=lambda: ended.append(len(protocol.ask(Path(place, "control"), "echo")))
        )
        ours.start()
        loop.run(ours.is_alive)
        assert ended == [0, 1]


@pytest.mark.parametrize("name", ["sing", "", None, 7, ["echo"], {"echo": 1}])
def test_an_unknown_request(path: Path, name: Any) -> None:
    with pytest.raises(EnforcerError, match="unknown request"):
        protocol.ask(path, name)


def test_an_unexpected_error_is_answered_and_said(path: Path, said: list[str]) -> None:
    with pytest.raises(EnforcerError, match="the daemon failed"):
        protocol.ask(path, "wrong")
    assert protocol.ask(path, "echo") == {"request": "echo"}
    assert "KeyError" in said[0]


def test_who_asks_nothing_is_hung_up_on(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(10)
        start = time.monotonic()
        assert protocol.ask(path, "echo") == {"request": "echo"}  # a slow caller delays no other
        assert time.monotonic() - start < 1
        assert connection.recv(1) == b""
        assert 1.9 < time.monotonic() - start < 5


def test_a_request_comes_in_parts(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(10)
        for part in (b'{"request"', b': "ec', b'ho"}\n'):
            connection.sendall(part)
            time.sleep(0.05)
        assert json.loads(connection.makefile("rb").readline()) == {"request": "echo"}


@pytest.mark.parametrize("name", ["/a\0b", "/\ud800"])
def test_a_file_that_cannot_be(name: str) -> None:
    """A command line cannot contain such names, but a request can."""
    with pytest.raises(UsageError, match="cannot be a file"):
        is_large(Path(name), name)


def test_a_request_without_an_end_is_none(path: Path) -> None:
    """The command was interrupted while it sent the request."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(10)
        connection.sendall(b'{"request": "echo"}')
        connection.shutdown(socket.SHUT_WR)
        assert "unknown request" in json.loads(connection.makefile("rb").readline())["error"]
