"""The interpreter's command line for the enforcer's processes.

-P and -s keep the current directory and the user's site directory off sys.path: a file json.py there would
otherwise run with root's privileges.
"""

from __future__ import annotations

import sys

PYTHON = (sys.executable, "-P", "-s")
