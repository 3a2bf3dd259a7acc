"""The enforcer on the lab's gateway: its daemon as a process, and its commands."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from enforcer.control.interpreter import PYTHON
from lab.configuration import Document
from lab.netns import LabError, execute
from lab.program import Program
from lab.topology import Lab


class LabGateway(Program):
    """``start()`` runs the daemon and waits for its ready line; commands run as on a user's command line."""

    def __init__(self, lab: Lab, config: Document | str | None = None):
        self.lab = lab
        self.config: Path = lab.write_config(config)
        self.enforcer = [
            *PYTHON,
            "-m",
            "enforcer",
            "--netns",
            lab.gw.name,
            "--config",
            str(self.config),
        ]
        super().__init__(lab.gw, [*self.enforcer, "run"], lab.directory, "enforcer", ready=self._is_ready)
        self._said_before = 0

    def command(self) -> list[str]:
        """The plain arguments, started outside: the daemon enters the namespace itself."""
        return self.argv

    def launch(self) -> LabGateway:
        """Start the daemon without waiting."""
        self._said_before = len(self.said())
        return super().launch()

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command of the enforcer to its end; LabError if ``check`` and it failed."""
        return execute([*self.enforcer, *arguments], check=check)

    def json(self, *arguments: str) -> Any:
        """The JSON output of a noun."""
        text = self.run(*arguments, "--json").stdout
        try:
            return json.loads(text)
        except ValueError:
            raise LabError(f"{' '.join(arguments)} --json printed no JSON: {text[:500]!r}") from None

    def write(self, config: Document | str) -> None:
        """Put another configuration into the file, for the next start or reload."""
        self.lab.write_config(config, self.config.name)

    def reload(self, config: Document | str | None = None) -> str:
        """Reload the file, with ``config`` written to it if given; return what the command printed."""
        if config is not None:
            self.write(config)
        return self.run("reload").stdout

    def kill(self) -> None:
        """End the daemon with SIGKILL: the kernel continues to enforce."""
        if self.process is not None and self.alive:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def down(self) -> str:
        """End the daemon and remove all that it installed; return what the command printed."""
        self.stop()
        return self.run("down").stdout

    def _is_ready(self) -> bool:
        return any(line.startswith("ready") for line in self.said()[self._said_before :].splitlines())
