"""Worker processes, each with one task: `python -m enforcer.workers.NAME`."""
