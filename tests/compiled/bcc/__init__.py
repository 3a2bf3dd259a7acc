"""Replaces BCC in the processes of a test run, so that each text is compiled once per run.

Compiling takes seconds of CPU time, and a run starts hundreds of gateways. BCC compiles the first of each
kind (text, flags, headers); its instructions, maps and BTF are written to the directory in
``ENFORCER_TEST_COMPILED``. Later processes load the same instructions on maps with the same attributes, and
the kernel's verifier checks each program. If that fails, BCC compiles the text and loads the programs or
reports the error. ``tests/kernel/datapath/test_compiled.py`` compares the results of both.
"""

from __future__ import annotations

from typing import Any

from . import real, record
from .replay import Replayed

__all__ = ["BPF", "lib"]


class BPF:
    """The part of BCC's class that ``enforcer.datapath.compiler`` uses."""

    SCHED_CLS, XDP = 3, 6

    def __init__(self, text: str, cflags: list[str]):
        self._text, self._flags = text, cflags
        self._real: Any = None
        self._replayed: Replayed | None = None
        kept = record.find(text, cflags)
        try:
            if kept is not None:
                self._replayed = Replayed(kept, record.pins(cflags))
        except OSError:
            kept = None
        if kept is None:
            self._compile()
            record.keep(text, cflags, self._real)

    def _compile(self) -> None:
        self._real = real.bcc().BPF(text=self._text, cflags=self._flags)
        self._replayed = None

    @property
    def module(self) -> Any:
        """The first argument of the functions in ``lib``."""
        return self._replayed or self._real.module

    def load_func(self, name: str, kind: int) -> Any:
        """A loaded program; ``fd`` is its descriptor."""
        if self._replayed is not None:
            try:
                return self._replayed.load(name, kind)
            except (OSError, KeyError):
                self._compile()
        return self._real.load_func(name, kind)


class _Library:
    """The functions of libbcc that ``enforcer.datapath.compiler`` calls, for modules of both kinds."""

    def __getattr__(self, name: str) -> Any:
        def ask(module: Any, *arguments: Any) -> Any:
            if isinstance(module, Replayed):
                return getattr(module, name)(*arguments)
            function = getattr(real.bcc().lib, name)
            for declaration, value in vars(ask).items():
                setattr(function, declaration, value)
            return function(module, *arguments)

        setattr(self, name, ask)
        return ask


lib = _Library()
