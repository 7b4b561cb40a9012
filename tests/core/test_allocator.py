"""Large blocks stay with the process once they were freed."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import resource
import torch
from tatscli.core.allocator import keep_freed_memory

torch.set_num_threads(1)
if {kept}:
    keep_freed_memory()
for _ in range(24):  # until the holes between other blocks have joined
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults(kept: bool) -> int:
    command = [sys.executable, "-c", COUNT.format(kept=kept)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def huge_pages() -> bool:
    """Whether the system hands out 2 MiB at once anyway."""
    try:
        return "[always]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False


@pytest.mark.skipif(huge_pages(), reason="with huge pages new ones cost little")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_block_that_was_freed_costs_no_new_pages() -> None:
    assert faults(kept=True) < 100
    assert faults(kept=False) > 100
