"""Layouts of map elements as BCC describes them, for tests without a kernel."""

from __future__ import annotations

import numpy as np

FLOW_KEY = np.dtype(
    [
        ("client", "<u4", 4),
        ("origin", "<u4", 4),
        ("client_port", "<u2"),
        ("origin_port", "<u2"),
        ("protocol", "u1"),
        ("pad", "u1", 3),
    ]
)
