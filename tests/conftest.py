"""Hooks of all tests: markers of RFC requirements (docs/rfc-compliance.md), signals, the order of files."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from rfcs import KEYWORDS, label

# No deadline: the time of an example depends on the machine's load.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# Processes of a test run import tests/compiled/bcc instead of BCC; this directory has its compiled programs.
_COMPILED = "ENFORCER_TEST_COMPILED"


def pytest_configure(config: pytest.Config) -> None:
    if _COMPILED not in os.environ:  # workers inherit the controller's
        os.environ[_COMPILED] = tempfile.mkdtemp(prefix="enforcer-compiled-")
        paths = [str(Path(__file__).parent / "compiled"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(_COMPILED)))
    for mark, (rfc, number) in KEYWORDS.items():
        config.addinivalue_line("markers", f"{mark}: RFC {rfc}, {label(rfc, number)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Long files come first: otherwise one of two processes would run the last of them alone.
    long = {item.path for item in items if item.get_closest_marker("timeout")}
    items.sort(key=lambda item: item.path not in long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A shell starts background jobs with SIGINT ignored, and processes that a test starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    # Tests that call a main() in this process set signal handlers, which later processes would inherit.
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        return (yield)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
