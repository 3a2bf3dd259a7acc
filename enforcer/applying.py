"""Applying a file in a process of its own (`python -m enforcer.apply`): start it, take its result.

Imports next to nothing, so that `run` can start the process first and load the rest meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from enforcer import control
from enforcer.errors import EnforcerError


def start(file: Path, *options: str) -> subprocess.Popen[str]:
    """Begins to apply the file."""
    return subprocess.Popen(
        [sys.executable, "-m", "enforcer.apply", str(file), *options], stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Waits; the operations taken and warnings. Raises ReportedError with the process's error."""
    said, _ = process.communicate()
    try:
        result = dict(json.loads(said))
    except ValueError:
        raise EnforcerError(f"applying ended with exit code {process.returncode} and no result") from None
    if "error" in result:
        raise control.ReportedError(result)
    return result
