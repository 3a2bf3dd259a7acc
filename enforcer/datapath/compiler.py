"""Compiles and loads the C sources with BCC, which only this module imports.

BCC keeps some 150 MB of compiler in memory, so this runs in a child process that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from enforcer.errors import KernelError, PrivilegeError

# Maps that only the programs use.
_PRIVATE = ("scratch", "stages", "in_flight", "arrivals", "next_tag", "oldest_flows", "unused_origins")
PROGRAMS = (
    "from_client",
    "decide",
    "to_client",
    "expect",
    "to_origin",
    "from_origin",
    "explain",
    "reap",
    "told",
    "forget",
    "forget_clients",
    "recount",
    "recount_clients",
    "keep_evictable",
)
_UAPI = Path("/usr/include")


@dataclass(frozen=True)
class Compiled:
    """File descriptors of the loaded programs by name, and BCC's descriptions of the maps."""

    programs: dict[str, int]
    layouts: dict[str, dict[str, Any]]
    module: object  # BCC's; the descriptors are closed when it is collected


def fast_buckets(flows: int) -> int:
    """Buckets of four in the table of fast-path entries: two entries for each flow, rounded up to 2^n."""
    return 1 << (flows // 2 - 1).bit_length()


def _one_text(root: Path) -> str:
    """egress.c with our headers inlined: BCC rewrites map accesses only in the main file."""

    def put_in(match: re.Match[str]) -> str:
        name = match.group(1)
        return f'#line 1 "{name}"\n{(root / name).read_text()}'

    text = (root / "egress.c").read_text()
    head, _, rest = text.partition('#include "maps.h"')
    last = rest.rindex('#include "')
    body_at = rest.index("\n", last) + 1
    includes = re.sub(
        r'^#include "(\w+\.h)"$', put_in, '#include "maps.h"' + rest[:body_at], flags=re.MULTILINE
    )
    line = (head + '#include "maps.h"' + rest[:body_at]).count("\n") + 1
    return f'{head}{includes}#line {line} "egress.c"\n{rest[body_at:]}'


def _uapi_flags() -> list[str]:
    """Include paths of the kernel's UAPI headers; bpf/include replaces the rest of a kernel tree."""
    if not (_UAPI / "linux/bpf.h").exists():
        raise KernelError(
            "the kernel's UAPI headers are missing", "Install them: apt-get install linux-libc-dev"
        )
    return [f"-isystem{_UAPI}/{platform.machine()}-linux-gnu", f"-isystem{_UAPI}"]


@contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Collects what clang and the verifier write to file descriptor 2, for our error."""
    said: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            sink.seek(0)
            said.append(sink.read().decode(errors="replace"))


def _fail(what: str, said: list[str], error: Exception) -> KernelError | PrivilegeError:
    """One message: the first compiler error, or the verifier's last five lines."""
    text = "".join(said).strip() or str(error)
    if "Operation not permitted" in f"{text} {error}":
        return PrivilegeError(
            f"{what}: not permitted", "Run as root, or with the capabilities in packaging/enforcer.service."
        )
    if "Function not implemented" in f"{text} {error}":
        return KernelError(f"{what}: this kernel has no BPF", "CONFIG_BPF_SYSCALL=y is needed.")
    lines = text.splitlines()
    compiler = [line for line in lines if " error: " in line]
    return KernelError(f"{what}: {error}", "\n".join(compiler[:1] or lines[-5:]))


def compile_programs(
    pin_directory: Path,
    stages: Path,
    flows: int,
    origins: int,
    defines: tuple[str, ...] = (),
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Compiled:
    """Compiles and loads every program; maps pinned in ``pin_directory`` are reused, others created there.

    ``stages`` is the pin of the tail call table, which the kernel would empty without a pin. ``progress`` is
    called before each program is verified, which takes seconds for large ones. Raises KernelError with the
    compiler's or the verifier's text, and PrivilegeError.
    """
    root = Path(str(files("enforcer.bpf")))
    flags = [
        "-O1",
        f"-I{root}",
        f'-DPIN_DIRECTORY="{pin_directory}"',
        f"-DFLOWS={flows}",
        f"-DORIGINS={origins}",
        f"-DFAST_BUCKETS={fast_buckets(flows)}",
        f'-DSTAGES_PIN="{stages}"',
        *defines,
    ]
    return compile_text(_one_text(root), flags, dict.fromkeys(PROGRAMS, "SCHED_CLS"), progress=progress)


def compile_text(
    text: str,
    flags: Sequence[str],
    kinds: Mapping[str, str],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Compiled:
    """Compiles one text and loads its programs; ``kinds`` are BCC's names of program types by function.

    Raises as compile_programs does.
    """
    os.environ["BCC_KERNEL_SOURCE"] = str(files("enforcer.bpf"))
    try:
        from bcc import BPF, lib
    except ImportError as error:
        raise KernelError("BCC is not installed", "Install it: apt-get install python3-bpfcc") from error
    with _captured_stderr() as said:
        try:
            module = BPF(text=text, cflags=[*_uapi_flags(), *flags])
            programs = {}
            for name, kind in kinds.items():
                progress(f"load the BPF program {name}")
                programs[name] = module.load_func(name, getattr(BPF, kind)).fd
        except KernelError:
            raise
        except Exception as error:  # BCC raises bare Exceptions
            failure = error
        else:
            return Compiled(programs, _describe(module, lib), module)
    raise _fail("compiling or loading the BPF programs", said, failure)


def _describe(module: Any, lib: Any) -> dict[str, dict[str, Any]]:
    layouts = {}
    # BCC does not declare these; without a declaration ctypes truncates pointers to 32 bits.
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_num_tables.restype = ctypes.c_size_t
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_table_name.restype = ctypes.c_char_p
    for number in range(lib.bpf_num_tables(module.module)):
        name = lib.bpf_table_name(module.module, number)
        if name.decode() in _PRIVATE:
            continue
        layouts[name.decode()] = {
            "key": json.loads(lib.bpf_table_key_desc(module.module, name)),
            "value": json.loads(lib.bpf_table_leaf_desc(module.module, name)),
        }
    return layouts
