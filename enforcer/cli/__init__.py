"""The click commands: one module a command; a command prints only what the library returns."""

from enforcer.cli.app import main

__all__ = ["main"]
