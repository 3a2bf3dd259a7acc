"""A description of the machine that the benchmark runs on."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.rig.generator import Generator


def machine(generator: Generator) -> dict[str, Any]:
    """Kernel, processor, date, and other facts that affect the figures."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": os.uname().release,
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "generator_cpu": generator.cpu,
        "load_at_start": round(os.getloadavg()[0], 2),
        "conntrack_max": int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text()),
    }


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = dict(re.findall(r"^(model name|cpu MHz)\s*: (.*)$", text, re.MULTILINE))
    return found.get("model name", "unknown") + (f", {found['cpu MHz']} MHz" if "cpu MHz" in found else "")
