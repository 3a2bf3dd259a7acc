"""Records BCC's results for a text in a file: instructions, maps, BTF, descriptions."""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enforcer.datapath import syscall

from . import kernel, real

DIRECTORY = "ENFORCER_TEST_COMPILED"
MAPS_OF_MAPS = (12, 13)
_PIN = re.compile(r'-D(\w*PIN\w*)="(.+)"')


@dataclass(frozen=True)
class Table:
    """A map of the module: its attributes, BTF and pin, and BCC's descriptions."""

    name: str
    information: kernel.MapInformation
    btf: bytes
    inner: str | None
    pin: tuple[str, str] | None
    """The compiler flag that names a directory or a file, and the file name in that directory."""
    key: bytes
    value: bytes


@dataclass(frozen=True)
class Record:
    """One compiled text: tables in BCC's order; instructions by function, with table indexes for maps."""

    tables: list[Table]
    functions: dict[str, bytes]
    license: bytes


def pins(flags: Iterable[str]) -> dict[str, str]:
    """The pin paths in the flags, by macro name."""
    return {found[1]: found[2] for flag in flags if (found := _PIN.fullmatch(flag))}


def find(text: str, flags: list[str]) -> Record | None:
    """The record of this text, or None."""
    file = file_of(text, flags)
    try:
        return pickle.loads(file.read_bytes()) if file else None
    except OSError:
        return None


def keep(text: str, flags: list[str], module: Any) -> None:
    """Writes the record of a module for the other processes of this run."""
    file = file_of(text, flags)
    if file is not None:
        new = file.with_suffix(f".{os.getpid()}")
        new.write_bytes(pickle.dumps(_record(module, pins(flags))))
        new.rename(file)


def file_of(text: str, flags: list[str]) -> Path | None:
    """The path of a record: a hash of text, kernel, flags and headers, but not of the paths of pins."""
    directory = os.environ.get(DIRECTORY)
    if not directory:
        return None
    parts = [text, platform.release()]
    for flag in flags:
        if _PIN.fullmatch(flag):
            continue
        root = Path(flag.removeprefix("-I"))
        if flag.startswith("-I") and root.is_dir():
            parts += [path.read_text() for path in sorted(root.rglob("*.h"))]
        else:
            parts.append(flag)
    return Path(directory) / hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _record(module: Any, places: dict[str, str]) -> Record:
    lib, handle = real.bcc().lib, ctypes.c_void_p(module.module)
    for name in ("table_name", "table_key_desc", "table_leaf_desc", "function_name", "module_license"):
        getattr(lib, f"bpf_{name}").restype = ctypes.c_char_p
    numbers = [ctypes.c_size_t(number) for number in range(lib.bpf_num_tables(handle))]
    names = [lib.bpf_table_name(handle, number) for number in numbers]
    descriptors = [lib.bpf_table_fd_id(handle, number) for number in numbers]
    pinned = _pinned(places)
    tables = []
    for name, fd in zip(names, descriptors, strict=True):
        found = kernel.map_information(fd)
        tables.append(
            Table(
                name.decode(),
                found,
                kernel.btf(found.btf),
                f"{name.decode()}_inner" if found.kind in MAPS_OF_MAPS else None,
                pinned.get(syscall.object_id(fd)),
                lib.bpf_table_key_desc(handle, name),
                lib.bpf_table_leaf_desc(handle, name),
            )
        )
    numbers_of = {fd: number for number, fd in enumerate(descriptors)}
    functions = [
        lib.bpf_function_name(handle, ctypes.c_size_t(number))
        for number in range(lib.bpf_num_functions(handle))
    ]
    return Record(
        tables,
        {name.decode(): kernel.with_maps(module.dump_func(name), numbers_of) for name in functions},
        lib.bpf_module_license(handle),
    )


def _pinned(places: dict[str, str]) -> dict[int, tuple[str, str]]:
    """The pin of each map, by the map's id."""
    found = {}
    for flag, place in places.items():
        for path in Path(place).iterdir() if Path(place).is_dir() else [Path(place)]:
            fd = syscall.get(str(path))
            found[syscall.object_id(fd)] = (flag, path.name if path != Path(place) else "")
            os.close(fd)
    return found
