"""Stands before BCC on the path of a test run's processes: each text is compiled once a run.

Compiling takes seconds of a processor, and a run starts hundreds of gateways. BCC compiles the first of each
kind (text, flags, headers); the instructions, maps and BTF that it made are written to the directory in
``ENFORCER_TEST_COMPILED``. When the same is asked for again, the same instructions are loaded on maps with
the same attributes, and the kernel's verifier looks at each program. What fails here is left to BCC, which
loads it or says why not. ``tests/kernel/datapath/test_compiled.py`` compares the two ways.
"""

from __future__ import annotations

from typing import Any

from . import real, record
from .replay import Replayed

__all__ = ["BPF", "lib"]


class BPF:
    """What ``enforcer.datapath.compiler`` uses of BCC's class."""

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
        """What ``lib`` is asked with."""
        return self._replayed or self._real.module

    def load_func(self, name: str, kind: int) -> Any:
        """A loaded program, its descriptor in ``fd``."""
        if self._replayed is not None:
            try:
                return self._replayed.load(name, kind)
            except (OSError, KeyError):
                self._compile()
        return self._real.load_func(name, kind)


class _Library:
    """What ``enforcer.datapath.compiler`` asks of libbcc, of a module of either kind."""

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
