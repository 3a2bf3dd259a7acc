"""Tests of the compiler, with a program of two lines."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from enforcer.datapath.compiler import Compiled, compile_text

from .box import Box

TEXT = """
BPF_ARRAY(numbers, u64, 1);
int nothing(struct __sk_buff *skb)
{
	return 0;
}
"""


def compile_it() -> Compiled:
    return compile_text(TEXT, [], {"nothing": "SCHED_CLS"})


def test_layouts_from_another_thread(box: Box) -> None:
    """The memory of another thread is beyond 4 GiB, as in a large process: pointers need all bits."""
    with ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(compile_it).result()
    assert compiled.layouts == compile_it().layouts
    assert set(compiled.layouts) == {"numbers"}
