"""The state file, lasting numbers of names, and the locks beside the file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcer import instance as instances
from enforcer.errors import BusyError, LaterVersionError, LockedError, PrivilegeError
from enforcer.gateway import state as states
from enforcer.gateway.state import LAST_POLICY, UNDO, State, assign, salvage
from enforcer.instance import Instance, trust
from enforcer.policy.rules import MAX_POLICIES

NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(st.lists(NAMES, min_size=1), st.integers(8, 10))
def test_numbers_last_while_a_name_is_used(generations: list[list[str]], last: int) -> None:
    """In any reloads a name keeps its number, no two share one, and a new name gets an unused one."""
    known: dict[str, int] = {}
    for names in generations:
        numbers = assign(names, known, last)
        assert set(names) <= set(numbers)
        assert len(set(numbers.values())) == len(numbers)
        assert all(1 <= number <= last for number in numbers.values())
        assert all(numbers[name] == known[name] for name in names if name in known)
        # There are as many numbers as names, so no name ever loses its own, used or not.
        assert all(numbers[name] == number for name, number in known.items())
        known = numbers


@given(st.lists(NAMES, min_size=1))
def test_numbers_of_names_that_are_gone_are_used_again_last(generations: list[list[str]]) -> None:
    known: dict[str, int] = {}
    for names in generations:
        used = names[:4]
        numbers = assign(used, known, 4)
        assert set(used) <= set(numbers)
        assert len(set(numbers.values())) == len(numbers) <= 4
        assert all(numbers[name] == known[name] for name in used if name in known)
        known = numbers


def test_a_narrower_mask_moves_numbers_that_are_too_large_for_it() -> None:
    assert assign(["a", "b"], {"a": 300, "b": 44}, 253) == {"a": 1, "b": 44}


def test_more_names_than_numbers() -> None:
    with pytest.raises(ValueError, match="3 names, but only 2 numbers"):
        assign("abc", {}, 2)


def test_every_policy_of_a_file_gets_a_number() -> None:
    names = [str(number) for number in range(MAX_POLICIES)]
    assert set(assign(names, {"gone": 5}, LAST_POLICY)) == set(names)


def test_the_lowest_number_that_nobody_had_comes_first() -> None:
    assert assign("b", {"a": 1}, 3) == {"a": 1, "b": 2}
    assert assign("cd", {"a": 1, "b": 2}, 3) == {"b": 2, "c": 3, "d": 1}


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    state = State(
        since=1.5,
        config={"location": "lax"},
        slots={"lax-1": 1},
        undo=[{"kind": "clsact", "interface": "in0"}],
    )
    state.save(tmp_path / "state.json")
    assert State.load(tmp_path / "state.json") == state
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    State(since=1.0).save(path)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            State(since=2.0).save(path)
    loaded = State.load(path)
    assert loaded is not None
    assert loaded.since == 1.0


@pytest.mark.parametrize("content", ["", "{", '{"format": 1', "{}", '{"format": "2"}', "[]", "null", "3"])
def test_what_cannot_be_read_is_no_state(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    assert State.load(path) is None


def test_what_another_version_has_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"format": 1, "since": 2.0, "stages": "stages-1", "what": 3}))
    assert State.load(path) == State(since=2.0, format=1)


# --- later versions

LATER = {
    "format": 3,
    "version": "9.1",
    "since": "a while ago",
    "config": {"where": "lax"},
    "program_ids": {"from_client": 7},
    "maps": "maps-9",
    "half_done": {"phase": 3},
    "undo": [
        {"kind": "sysctl", "name": "net/ipv4/ip_forward", "was": "0"},
        {"kind": "sysctl", "name": "net/ipv4/ip_forward"},
        {"kind": "teleport", "to": 7},
        {"what": "?"},
        "clsact",
    ],
}


def test_a_later_version_that_writes_another_format(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(LATER))
    with pytest.raises(LaterVersionError) as raised:
        State.load(path)
    assert "later version of the enforcer (9.1)" in raised.value.message
    assert "format 3" in raised.value.message
    assert raised.value.hint is not None and "enforcer down" in raised.value.hint


def test_what_down_can_use_of_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(LATER))
    salvage(path)
    state = State.load(path)
    assert state is not None
    assert (state.version, state.since, state.config, state.half_done) == ("9.1", 0.0, {}, None)
    assert (state.program_ids, state.maps) == ({"from_client": 7}, "maps-9")
    assert state.undo == [LATER["undo"][0], LATER["undo"][2]]  # type: ignore[index]
    assert state.foreign == ["teleport"]


def test_an_index_that_is_none(tmp_path: Path) -> None:
    path, entry = tmp_path / "state.json", {"kind": "clsact", "interface": "in0"}
    undo = [entry | {"index": "3"}, entry | {"index": 3}, entry, {"kind": "teleport", "index": 3}]
    path.write_text(json.dumps({"format": 1, "undo": undo}))
    state = State.load(path)
    assert state is not None
    assert state.undo == [undo[0], *undo[2:]]


@given(st.binary(max_size=64))
def test_any_bytes_are_read(content: bytes) -> None:
    """Arbitrary bytes are no state, and salvage does not change the file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "state.json")
        path.write_bytes(content)
        assert State.load(path) is None
        salvage(path)
        assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["", "{", '{"format": 1, "since": 2.0}'])
def test_nothing_else_is_salvaged(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    salvage(path)
    assert not path.exists()
    path.write_text(content)
    salvage(path)
    assert path.read_text() == content


def test_what_another_version_says_of_a_plan_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"format": 1, "half_done": {"pid": 3, "config": {}, "phase": "late"}}))
    state = State.load(path)
    assert state is not None and state.half_done is not None
    assert state.half_done == {
        "since": 0.0,
        "operations": [],
        **State().other_side(),
        "pid": 3,
        "phase": "late",
    }


def test_every_kind_that_is_noted_is_known() -> None:
    """An unknown kind in the undo list counts as one of another version."""
    sources = [(Path(states.__file__).parent / name).read_text() for name in ("applier.py", "undo_list.py")]
    noted = set(re.findall(r'(?:"kind": |done_to\()"(\w+)"', "".join(sources)))
    assert {"sysctl", "clsact", "allmulti"} <= noted
    assert noted <= UNDO.keys()


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert State.load(tmp_path / "state.json") is None


def test_a_state_that_others_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trust, "read_file", refused)
    with pytest.raises(PrivilegeError, match="cannot read"):
        State.load(tmp_path / "state.json")


# --- locks


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    monkeypatch.setattr(instances, "RUN", tmp_path / "run")
    return Instance(0x2A)


def test_one_daemon(instance: Instance) -> None:
    """flock(2) locks belong to open files, so one process can act as two."""
    assert instance.daemon_pid() is None
    with instance.daemon_lock():
        instance.state_file.write_text("{}")
        assert instance.daemon_pid() == os.getpid()
        with pytest.raises(BusyError, match=f"pid {os.getpid()}"), instance.daemon_lock():
            pass
    assert instance.daemon_pid() is None
    assert instance.state_file.exists()
    with instance.daemon_lock():
        assert instance.daemon_pid() == os.getpid()


def test_a_daemon_without_a_state_leaves_nothing(instance: Instance) -> None:
    with instance.daemon_lock(), instance.change_lock():
        assert instance.directory.is_dir()
    assert not instance.directory.exists()
    assert not instances.RUN.exists()


def test_remove_takes_all_unless_a_daemon_runs(instance: Instance) -> None:
    with instance.change_lock():
        instance.state_file.write_text("{}")
        instance.remove()
        assert not instance.directory.exists()
    with instance.daemon_lock():
        instance.state_file.write_text("{}")
        with instance.change_lock():
            instance.remove()
        assert instance.daemon_pid() == os.getpid()
        assert not instance.state_file.exists()
        with pytest.raises(BusyError), instance.daemon_lock():
            pass
    assert not instance.directory.exists()


def test_who_waited_for_a_lock_that_was_removed_takes_the_new_one(instance: Instance) -> None:
    entered, order = threading.Event(), []

    def wait() -> None:
        entered.set()
        with instance.change_lock():
            order.append("second")
            assert (instance.directory / "change.lock").exists()

    with instance.change_lock():
        other = threading.Thread(target=wait)
        other.start()
        entered.wait(5)
        order.append("first")
        instance.remove()
    other.join(10)
    assert order == ["first", "second"]


HOLD = """
import sys
from pathlib import Path
from enforcer import instance
instance.RUN = Path(sys.argv[1])
with instance.Instance(0x2A).change_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(instance: Instance) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the change lock."""
    command = [sys.executable, "-c", HOLD, str(instances.RUN)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def test_a_change_is_not_waited_for_without_end(instance: Instance) -> None:
    with holding(instance) as other:
        assert instance.changing_pid() == other.pid
        with pytest.raises(LockedError, match=f"pid {other.pid}"), instance.change_lock(0.2):
            pass
        assert other.poll() is None
    assert instance.changing_pid() is None
    with instance.change_lock(0.2):
        assert instance.changing_pid() == os.getpid()


def test_a_process_that_hangs_under_the_lock_is_killed(instance: Instance) -> None:
    with holding(instance) as other:
        os.kill(other.pid, signal.SIGSTOP)
        with instance.change_lock(0.2, kill=True):
            assert instance.changing_pid() == os.getpid()
        assert other.wait(20) == -signal.SIGKILL


def test_the_number_in_the_file_is_nobodys_death(instance: Instance) -> None:
    """The pid may have been reused: /proc/locks has the process that holds the lock."""
    with subprocess.Popen(["sleep", "1000"]) as innocent:
        try:
            with holding(instance) as other:
                (instance.directory / "change.lock").write_text(f"{innocent.pid}\n")
                with instance.change_lock(0.2, kill=True):
                    pass
                assert other.wait(20) == -signal.SIGKILL
            assert innocent.poll() is None
        finally:
            innocent.kill()


def test_gateways_have_directories_of_their_own(instance: Instance) -> None:
    other = Instance(0x2B)
    with instance.daemon_lock(), other.daemon_lock():
        assert instance.directory != other.directory
        assert other.directory.stat().st_mode & 0o777 == 0o700
    assert not instances.RUN.exists()


def test_a_directory_that_cannot_be_made(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(PrivilegeError, match="cannot create"), instance.daemon_lock():
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        bytes(range(256)),
        b"\0" * 4096,
        b"[" * 100_000,
        b"1" * 10_000,
        b"[]",
        b'{"format": 0}',
        b'{"format": 1, "slots": 3}',
        b'{"format": 1, "config": [], "slots": {}}',
        b'{"format": 1, "applied": "yesterday"}',
    ],
)
def test_a_file_that_something_else_wrote_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    assert State.load(path) is None
    path.write_bytes(content)
    assert State.load(path) is None
    State(slots={"a": 1}, applied=3).save(path)
    found = State.load(path)
    assert found is not None and (found.slots, found.applied) == ({"a": 1}, 3)


def test_a_pipe_in_the_files_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.json")
    assert State.load(tmp_path / "state.json") is None
