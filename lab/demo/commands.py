"""The enforcer's own commands on the lab's gateway, with their unchanged output."""

from __future__ import annotations

from lab.configuration import added
from lab.demo.screen import Screen
from lab.demo.stage import Question, Stage
from lab.topology import ORIGIN1

HEAD = 10  # lines
NEW = {"name": "lax-3", "location": "lax", "ipv4": "203.0.113.12", "ipv6": "2001:db8:4::/64"}


def show(stage: Stage, screen: Screen) -> None:
    """Show the output of the nouns, and of `plan` for a file with one more egress IP."""
    screen.heading("What the commands say")
    explain = ["explain", *Question(ORIGIN1, "tcp", 443).arguments(4)]
    for arguments in (["status"], ["policies"], ["egress"], ["origins"], ["flows"], ["reasons"], explain):
        _show(stage, screen, arguments)
    screen.line("(with one more egress IP in the file, not applied)", "dim")
    stage.gateway.write(added(stage.config, "egress_ips", NEW))
    _show(stage, screen, ["plan"])
    stage.gateway.write(stage.config)


def _show(stage: Stage, screen: Screen, arguments: list[str]) -> None:
    screen.line(f"$ enforcer {' '.join(arguments)}", "bold cyan")
    done = stage.gateway.run(*arguments, check=False)
    lines = done.stdout.rstrip().splitlines()
    shorten = arguments[0] in ("origins", "flows") and len(lines) > HEAD + 1
    for line in lines[:HEAD] if shorten else lines:
        screen.line(line.rstrip())
    if shorten:
        screen.line(f"… {len(lines) - HEAD} more", "dim")
    if done.returncode:
        screen.check(False, f"exit code {done.returncode}: {done.stderr.strip()}")
    screen.line()
