"""How the C library holds memory: where large tensors are made at every step, its defaults cost time."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

LARGE_PAGE = 2**21


@cache
def keep_freed_memory() -> None:
    """Let the C library keep the memory of large tensors for the next ones, on large pages. Where that is not glibc, nothing happens.

    By default glibc gives each back to the system, which has to map and zero all its pages again for the next step: up to a quarter of
    its time. The process then holds what it once needed until it ends.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: take large blocks from the heap, too
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: and never shrink it
        _ask_for_large_pages(libc)


def _ask_for_large_pages(libc: ctypes.CDLL) -> None:
    """Have Linux put the heap on pages of 2 MiB where it does so on request alone: a processor looks fewer of them up.

    The heap grows to half of the machine's memory once, which takes none before it is used. Where address space is limited or has to be
    backed by memory, nothing happens.
    """
    from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_DATA, getrlimit

    strict = Path("/proc/sys/vm/overcommit_memory")
    limited = any(getrlimit(kind)[0] != RLIM_INFINITY for kind in (RLIMIT_AS, RLIMIT_DATA))
    if limited or (strict.exists() and strict.read_text().strip() == "2"):
        return
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    if block := libc.malloc(size):
        libc.madvise(-(-block // LARGE_PAGE) * LARGE_PAGE, size - LARGE_PAGE, 14)  # MADV_HUGEPAGE
        libc.free(block)
