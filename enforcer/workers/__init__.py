"""Entries of processes that do one thing and end: `python -m enforcer.workers.NAME`."""
