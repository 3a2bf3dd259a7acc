"""The command line of the enforcer's Python processes.

Neither the current directory (-P) nor the user's site directory (-s) is on sys.path: a file json.py there
would otherwise run with root's rights.
"""

from __future__ import annotations

import sys

PYTHON = (sys.executable, "-P", "-s")
