"""Large blocks stay with the process once they were freed."""

import platform
import subprocess
import sys

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_block_that_was_freed_costs_no_new_pages() -> None:
    assert faults(kept=True) < 100
    assert faults(kept=False) > 100
