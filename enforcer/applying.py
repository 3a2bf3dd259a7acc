"""Work in a process of its own (`python -m enforcer.apply`, say): start it, take its result.

Imports next to nothing, so that `run` can start the process first and load the rest meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from enforcer import control
from enforcer.errors import EnforcerError
from enforcer.interpreter import PYTHON


class Work:
    """A module run as a process: what it says on stdout is read as it comes, and is one JSON document."""

    def __init__(self, module: str, *arguments: str):
        self.module = module
        self._said = b""
        self._process = subprocess.Popen([*PYTHON, "-m", module, *arguments], stdout=subprocess.PIPE)

    def fileno(self) -> int:
        """Readable when :meth:`ended` has something to do."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def ended(self) -> bool:
        """Reads some; whether the process has said all it has to say."""
        data = os.read(self.fileno(), 1 << 16)
        self._said += data
        return not data

    def result(self) -> dict[str, Any]:
        """Waits for the end; what the process gave. Raises ReportedError with the process's error."""
        self._said += self._process.communicate()[0]
        try:
            result = dict(json.loads(self._said))
        except ValueError:
            what = "applying" if self.module == "enforcer.apply" else self.module
            raise EnforcerError(
                f"{what} ended with exit code {self._process.returncode} and no result"
            ) from None
        if "error" in result:
            raise control.ReportedError(result)
        return result


def start(file: Path, *options: str) -> Work:
    """Begins to apply the file."""
    return Work("enforcer.apply", str(file), *options)


def start_again() -> Work:
    """Begins to apply the configuration in force once more."""
    return Work("enforcer.apply", "--again")
