"""Creates the maps and loads the programs of a record as BCC does."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from enforcer.datapath import syscall

from . import kernel
from .record import Record, Table


@dataclass(frozen=True)
class Function:
    """A loaded program."""

    fd: int


class Replayed:
    """A record's maps, opened by their pins or created, and its programs, loaded on request.

    Raises OSError. The descriptors are closed when the object is freed.
    """

    def __init__(self, record: Record, pins: dict[str, str]):
        self._record, self._pins = record, pins
        self._open = ExitStack()
        self._btf: dict[bytes, int] = {b"": 0}
        self._maps: dict[str, int] = {}
        try:
            # Inner maps first: a map of maps is created with one as its prototype.
            for table in sorted(record.tables, key=lambda table: table.inner is not None):
                self._maps[table.name] = self._keep(self._map(table))
        except BaseException:
            self._open.close()
            raise

    def __del__(self) -> None:
        self._open.close()

    def _keep(self, fd: int) -> int:
        self._open.callback(os.close, fd)
        return fd

    def _map(self, table: Table) -> int:
        path = None
        if table.pin is not None:
            flag, name = table.pin
            path = Path(self._pins[flag]) / name
            try:
                return syscall.get(str(path))
            except FileNotFoundError:
                path.parent.mkdir(exist_ok=True)
        if table.btf not in self._btf:
            self._btf[table.btf] = self._keep(kernel.load_btf(table.btf))
        inner = self._maps[table.inner] if table.inner else 0
        fd = kernel.create_map(table.information, self._btf[table.btf], inner)
        try:
            if path is not None:
                syscall.pin(fd, str(path))
        except OSError as error:
            os.close(fd)
            if error.errno == errno.EEXIST:
                return syscall.get(str(path))
            raise
        return fd

    def load(self, name: str, kind: int) -> Function:
        """Loads a program. Raises OSError, also for an error of the verifier, and KeyError."""
        numbers = dict(enumerate(self._maps[table.name] for table in self._record.tables))
        instructions = kernel.with_maps(self._record.functions[name], numbers)
        return Function(self._keep(kernel.load_program(name, kind, instructions, self._record.license)))

    def bpf_num_tables(self) -> int:
        """As libbcc's function of this name, like the following ones."""
        return len(self._record.tables)

    def bpf_table_name(self, number: int) -> bytes:
        return self._record.tables[number].name.encode()

    def bpf_table_key_desc(self, name: bytes) -> bytes:
        return self._table(name).key

    def bpf_table_leaf_desc(self, name: bytes) -> bytes:
        return self._table(name).value

    def _table(self, name: bytes) -> Table:
        return next(table for table in self._record.tables if table.name.encode() == name)
