"""The memory of this process."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_HUGE_PAGE = 2 << 20  # bytes; where it is another size, the system refuses, and nothing changes
_MADV_COLLAPSE = 25  # Linux 6.1
_ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 +(?:\[heap\])?\n", re.ASCII)
_M_ARENA_MAX = -8  # malloc.h


def share_heaps() -> None:
    """Let all threads have their memory from two heaps (glibc). It is to be called before there are any.

    Otherwise each of many threads has a heap of its own, and what one has freed the others cannot use. Threads of
    Python wait for each other anyway.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if set_option is not None:
        set_option(_M_ARENA_MAX, 2)


def use_huge_pages() -> None:
    """Put what this process has in memory into huge pages, where the system can (Linux 6.1).

    A fork then copies one entry for 512 pages, and the end of a process frees one. What a child writes to is copied
    page by page all the same.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in _anonymous_memory():
        first, last = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
        if first < last:
            advise(first, last - first, _MADV_COLLAPSE)  # it may say that it cannot be had


def _anonymous_memory() -> Iterator[tuple[int, int]]:
    """Where the memory is that this process alone has, which stands for no file: addresses."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines(keepends=True):
            found = _ANONYMOUS.fullmatch(line)
            if found:
                yield int(found[1], 16), int(found[2], 16)
