"""Memory that is kept, and the pages that it lies on; in processes of their own, since it is set once for all."""

import os
import subprocess
import sys
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_DATA, getrlimit

import pytest

CODE = """
import resource, sys
if sys.argv[1] != "free":
    resource.setrlimit(getattr(resource, sys.argv[1]), (2**34, 2**34))
from rather.kernels.memory import keep_freed_memory
import torch
def held(of):
    return int(open("/proc/self/status").read().split(of)[1].split()[0]) / 1024
keep_freed_memory()
keep_freed_memory()
size, before = held("VmSize:"), held("VmRSS:")
many = [torch.ones(2**18) for _ in range(256)]  # a mebibyte each
asked, now = 0.0, 0.0  # of mappings whose flags say that large pages are wanted
for line in open("/proc/self/smaps"):
    now = int(line.split()[1]) / 1024 if line.startswith("Size:") else now
    asked += now if line.startswith("VmFlags:") and " hg" in line else 0
during = held("VmRSS:")
del many
print(size, before, during, asked, held("VmRSS:"))
"""


def ran(how: str) -> list[float]:
    found = subprocess.check_output([sys.executable, "-c", CODE, how], text=True)
    return [float(x) for x in found.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="is of Linux")
def test_memory_is_kept_on_large_pages_and_none_is_taken_before_it_is_used() -> None:
    size, before, during, asked, after = ran("free")
    assert before < 1000, "the heap that was asked for is not there yet"
    assert 250 < during - before < 300
    assert after > during - 20, "what was freed is kept"
    limits = [getrlimit(kind)[0] for kind in (RLIMIT_AS, RLIMIT_DATA)]
    if limits != [RLIM_INFINITY] * 2 or Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        return  # then none is set aside here
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**21
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert asked > 0.9 * half
    for limit in ("RLIMIT_AS", "RLIMIT_DATA"):
        assert size - ran(limit)[0] > 0.9 * half, "where address space is limited none is set aside"
