"""The click commands: one module per command; they print what the library returns."""

from enforcer.cli.app import main

__all__ = ["main"]
