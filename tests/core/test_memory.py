"""How much memory is free: of the machine, and of a container."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tatscli.core import memory
from tatscli.core.failures import explained
from tatscli.core.memory import PeakMemory, bounded_memory, device_memory, free_memory
from tatscli.errors import DeviceError

CPU = torch.device("cpu")


def test_the_free_memory_of_a_machine_is_known() -> None:
    free = free_memory(CPU)
    assert free is not None
    assert free > 2**20


def test_nobody_says_how_much_another_device_has() -> None:
    assert free_memory(torch.device("meta")) is None


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("5000\n", "2000\n", 3040), ("2000", "5000", 0), ("max\n", "5", None)],
)
def test_a_container_may_have_less(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    used: str,
    expected: int | None,
) -> None:
    group = memory._Cgroup(
        *(tmp_path / name for name in ("max", "current", "stat")),
        ("inactive_file", "active_file"),
    )
    group.limit.write_text(limit)
    group.used.write_text(used)
    group.statistics.write_text("anon 7\ninactive_file 30\nactive_file 10\n")
    absent = group._replace(limit=tmp_path / "none")
    monkeypatch.setattr(memory, "_CGROUPS", [absent, group])
    monkeypatch.setattr(memory, "_machine", lambda: None)
    assert free_memory(CPU) == expected
    monkeypatch.setattr(memory, "_machine", lambda: 1000)
    assert free_memory(CPU) == min(1000, 1000 if expected is None else expected)


def test_the_peak_is_what_was_taken_for_a_moment() -> None:
    before = PeakMemory(CPU)
    if before.bytes() is None:
        pytest.skip("this system does not say")
    taken = torch.ones(2**26)  # 256 MiB
    del taken
    found = before.bytes()
    assert found is not None
    assert 0.9 * 2**28 < found < 2 * 2**28
    assert PeakMemory(torch.device("meta")).bytes() is None
    assert device_memory(CPU) is None


def test_a_system_that_does_not_say_has_no_peak(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no folder" / "none")
    assert PeakMemory(CPU).bytes() is None


@pytest.mark.gpu
def test_the_peak_of_a_gpu_is_exact() -> None:
    peak = PeakMemory(torch.device("cuda"))
    taken = torch.ones(2**20, device="cuda")
    del taken
    assert peak.bytes() == 2**22


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this limit")
def test_memory_that_is_not_there_is_refused_instead_of_ending_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(memory, "free_memory", lambda _: 2**30)
    monkeypatch.setattr(memory, "_beside", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError) as caught, explained("less of it", bounded=True):
        torch.zeros(2**27)  # half of it can be had
        torch.empty(2**29)
    assert caught.value.message == (
        "out of memory: 2.00 GiB more were asked for; 1.0 GiB were free at the start"
    )
    assert caught.value.hint == "less of it"
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits
    torch.empty(2**29)  # afterwards as before
    with pytest.raises(DeviceError, match="out of memory"), explained("less of it", bounded=True):
        np.empty(2**31, np.uint8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with explained("a GPU's driver maps more than it uses", bounded=True):
        torch.empty(2**29)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this limit")
def test_the_last_to_leave_lifts_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    def soft() -> int:
        return resource.getrlimit(resource.RLIMIT_DATA)[0]

    before = soft()
    monkeypatch.setattr(memory, "free_memory", lambda _: 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    first, second = bounded_memory(), bounded_memory()
    first.__enter__()
    bound = soft()
    assert bound != before
    second.__enter__()
    first.__exit__(None, None, None)
    assert soft() == bound
    second.__exit__(None, None, None)
    assert soft() == before
