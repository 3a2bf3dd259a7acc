"""What all tests share: marks of requirements of RFCs (docs/rfc-compliance.md), and signals that work."""

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

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# Processes of a run find tests/compiled/bcc before BCC, and in this directory what others have compiled.
_COMPILED = "ENFORCER_TEST_COMPILED"


def pytest_configure(config: pytest.Config) -> None:
    if _COMPILED not in os.environ:  # of workers it is the controller's
        os.environ[_COMPILED] = tempfile.mkdtemp(prefix="enforcer-compiled-")
        paths = [str(Path(__file__).parent / "compiled"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(_COMPILED)))
    for mark, (rfc, number) in KEYWORDS.items():
        config.addinivalue_line("markers", f"{mark}: RFC {rfc}, {label(rfc, number)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # With two processes the files that take longest come first, or one process has the last of them alone.
    long = {item.path for item in items if item.get_closest_marker("timeout")}
    items.sort(key=lambda item: item.path not in long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A shell that starts us in the background has us ignore Ctrl-C, and what we start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    # A test that runs a process's entry in this process sets its signals; later tests' processes inherit it.
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        return (yield)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
