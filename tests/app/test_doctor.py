"""What tats doctor finds on machines on which something was broken on purpose."""

import errno
import os
import signal
import time
from collections import namedtuple
from pathlib import Path

import pytest

from tatscli.app import doctor, doctor_checks
from tatscli.app.doctor import diagnose, require_sound
from tatscli.app.doctor_checks import CHECKS, Check, Verdict
from tatscli.config.doctor import DoctorConfig
from tatscli.core import weights
from tatscli.errors import DataError, TatsError

Usage = namedtuple("Usage", "total used free")
LAUNCHED = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def seen(look, **settings):
    """What a check says in this process."""
    return list(look(DoctorConfig(**settings)))


def only(look, **settings):
    [verdict] = seen(look, **settings)
    return verdict


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """A process that nobody launched, with a cache of its own."""
    for name in list(os.environ):
        if name in LAUNCHED or name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))


# Looks that are run in the other process, which finds them by their names.


def fine(_):
    yield Verdict("ok", "fine")


def hangs(_):
    yield Verdict("ok", "so far")
    time.sleep(60)


def crashes(_):
    yield from ()
    os.kill(os.getpid(), signal.SIGSEGV)


def raises(_):
    yield Verdict("ok", "so far")
    raise ValueError("a bug")


def complains(_):
    yield from ()
    raise DataError("a path", "a hint")


class Hanging:
    def __init__(self, file):
        self._file = file

    def __len__(self):
        return 4

    def __getitem__(self, place):
        self._file.write_text(str(os.getpid()))
        time.sleep(60)


def waits_for_a_worker(config):
    doctor_checks.first_batches(Hanging(config.out))
    yield Verdict("ok", "it came")


def test_a_check_that_breaks_hides_no_other():
    looks = (fine, raises, crashes, fine, hangs, complains, fine)
    limits = {hangs: 1.5}
    checks = [Check(look.__name__, look, "mend it", limits.get(look, 30)) for look in looks]
    found = diagnose(DoctorConfig(), None, checks)
    assert [(item.check, item.level, item.text, item.fix) for item in found] == [
        ("fine", "ok", "fine", ""),
        ("raises", "ok", "so far", ""),
        ("raises", "error", "ValueError: a bug", ""),
        ("crashes", "error", "the process that looked was ended by SIGSEGV", "mend it"),
        ("fine", "ok", "fine", ""),
        ("hangs", "ok", "so far", ""),
        ("hangs", "error", "no answer within 1.5 s", "mend it"),
        ("complains", "error", "a path", "a hint"),
        ("fine", "ok", "fine", ""),
    ]


def test_a_worker_that_hangs_is_an_error_and_leaves_no_process(tmp_path):
    worker = tmp_path / "worker"
    torch = next(check for check in CHECKS if check.name == "torch")  # imports it, at leisure
    check = Check("loader", waits_for_a_worker, "--workers 0", 4)
    found = diagnose(DoctorConfig(out=worker), None, [torch, check])
    assert found[1:] == [doctor.Finding("loader", "error", "no answer within 4 s", "--workers 0")]
    deadline = time.monotonic() + 3
    while alive(int(worker.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process):
    """Whether a process runs; one that only waits to be counted as ended does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_what_rests_on_a_broken_library_is_not_looked_at():
    checks = [Check("torch", complains), Check("gpu", fine, after=("torch",)), Check("x", fine)]
    found = diagnose(DoctorConfig(), None, checks)
    assert [(item.check, item.level) for item in found] == [
        ("torch", "error"),
        ("gpu", "warning"),
        ("x", "ok"),
    ]
    assert found[1].text == "not looked at, since torch does not work"
    with pytest.raises(TatsError, match="because of torch") as error:
        require_sound(found)
    assert error.value.hint == "torch: a hint"
    require_sound(found[1:])


def test_a_torchvision_of_another_torch_is_an_error_that_names_the_pip_command(
    monkeypatch, tmp_path
):
    package = tmp_path / "fake" / "torchvision"
    package.mkdir(parents=True)
    broken = 'raise RuntimeError("operator torchvision::nms does not exist")'
    (package / "__init__.py").write_text(broken)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    names = ("torch", "torchvision", "lightning")
    checks = [check for check in CHECKS if check.name in names]
    levels = {item.check: item for item in diagnose(DoctorConfig(), None, checks)}
    assert {name: item.level for name, item in levels.items()} == {
        "torch": "ok",
        "torchvision": "error",
        "lightning": "warning",
    }
    assert "operator torchvision::nms does not exist" in levels["torchvision"].text
    assert "python -m pip uninstall torchvision" in levels["torchvision"].fix
    assert "pip install --force-reinstall torch torchvision" in levels["torchvision"].fix


def test_without_torchvision_nothing_is_wrong(monkeypatch):
    monkeypatch.setattr(doctor_checks, "_installed", lambda name: "")
    assert only(doctor_checks.check_torchvision).level == "ok"


def test_a_package_of_another_version_is_named_with_both(monkeypatch):
    real = doctor_checks._installed
    old = {"lightning": "1.5.4", "einops": ""}
    monkeypatch.setattr(doctor_checks, "_installed", lambda name: old.get(name, real(name)))
    wrong = [item for item in seen(doctor_checks.check_python) if item.level == "error"]
    assert len(wrong) == 2
    assert any(item.text.startswith("lightning 1.5.4; tats needs ") for item in wrong)
    assert any(item.text.startswith("einops is not installed; tats needs ") for item in wrong)
    assert all(item.fix.startswith('python -m pip install "') for item in wrong)


def test_every_codec_is_written_and_read():
    verdict = only(doctor_checks.check_video)
    assert verdict.level == "ok"
    assert all(codec in verdict.text for codec in ("h264", "mpeg4", "vp9"))
    assert "ffv1 (0)" in verdict.text


def test_a_codec_that_is_missing_is_named(monkeypatch):
    from tatscli.core.data import video

    monkeypatch.setitem(video._ENCODER, "h264", "libnone")
    monkeypatch.setitem(video._ENCODER, "vp9", "libnone")
    found = seen(doctor_checks.check_video)
    assert [item.level for item in found] == ["error", "warning", "ok"]
    assert "cannot write and read h264" in found[0].text
    assert "cannot write and read vp9" in found[1].text
    assert "pip install" in found[0].fix


@pytest.mark.parametrize(
    ("free", "level"), [(40 * 10**6, "error"), (64 * 10**6, "warning"), (8 * 10**9, "ok")]
)
def test_little_shared_memory_is_told_with_its_size(monkeypatch, free, level):
    monkeypatch.setattr(doctor_checks.shutil, "disk_usage", lambda _: Usage(10**10, 0, free))
    verdict = only(doctor_checks.check_shared_memory)
    assert verdict.level == level
    assert doctor_checks._size(free) in verdict.text
    assert ("--shm-size" in verdict.fix) == (level != "ok")


def test_folders_are_really_written_and_left_as_they_were(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert only(doctor_checks.check_runs, out=tmp_path / "runs").level in ("ok", "warning")
    told = only(doctor_checks.check_runs, out=tmp_path / "a" / "b")
    assert f"to be made in {tmp_path}, can be written" in told.text
    only(doctor_checks.check_cache)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_place_of_the_cache_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    verdict = only(doctor_checks.check_cache)
    assert verdict.level == "error"
    assert f"{tmp_path / 'cache'} cannot be written: Not a directory" in verdict.text
    assert "TATS_CACHE" in verdict.fix


def test_a_disk_that_is_read_only_or_full_is_an_error(tmp_path, monkeypatch):
    for code in (errno.EROFS, errno.ENOSPC):

        def refuse(code=code, **_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(doctor_checks.tempfile, "TemporaryFile", refuse)
        verdict = only(doctor_checks.check_runs, out=tmp_path)
        assert verdict.level == "error"
        assert verdict.text == f"{tmp_path} cannot be written: {os.strerror(code)}"
        assert "write elsewhere" in verdict.fix


def test_little_disk_is_a_warning_with_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_checks.shutil, "disk_usage", lambda _: Usage(10**11, 0, 3 * 10**9))
    verdict = only(doctor_checks.check_runs, out=tmp_path)
    assert verdict.level == "warning"
    assert "3.0 GB free" in verdict.text


def test_a_weight_file_that_is_missing_is_a_warning_and_a_wrong_one_an_error():
    file = weights.FILES["vgg16"].path
    file.parent.mkdir(parents=True)
    file.write_text("not the file")
    found = seen(doctor_checks.check_weight_files)
    wrong = [item for item in found if item.level == "error"]
    missing = [item for item in found if item.level == "warning"]
    assert [item.text.split(":")[0] for item in wrong] == ["vgg16"]
    assert [item.text.split()[0] for item in missing] == ["i3d", "alexnet"]
    assert all("tats weights fetch" in item.fix for item in [*wrong, *missing])


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "0",
}


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "neither torchrun nor SLURM"),
        (TORCHRUN, "torchrun: 4 processes on each of 2 machines"),
        (SLURM, "srun: 4 processes on each of 2 machines"),
        ({"SLURM_JOB_ID": "7"}, "SLURM job 7 of one task"),
    ],
)
def test_variables_that_agree_are_fine(monkeypatch, environment, told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    verdict = only(doctor_checks.check_launch)
    assert verdict.level == "ok"
    assert told in verdict.text


@pytest.mark.parametrize(
    ("environment", "told", "fix"),
    [
        ({"RANK": "3"}, "RANK is 3, and nothing started several processes", "unset RANK"),
        ({"RANK": "three"}, "RANK is 'three', not a number", "unset RANK"),
        (TORCHRUN | {"RANK": "8"}, "RANK is 8 and WORLD_SIZE 8", "torchrun"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE 3: not a multiple", "torchrun"),
        ({"TORCHELASTIC_RUN_ID": "1"}, "but WORLD_SIZE is not", "torchrun"),
        (SLURM | {"SLURM_NTASKS": "6"}, "2 machines (SLURM_NNODES) with 4 tasks", "--ntasks"),
        (SLURM | {"SLURM_PROCID": "9"}, "SLURM_PROCID is 9 and SLURM_NTASKS 8", "srun"),
    ],
)
def test_variables_that_contradict_are_an_error(monkeypatch, environment, told, fix):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    verdict = only(doctor_checks.check_launch)
    assert verdict.level == "error"
    assert told in verdict.text
    assert fix in verdict.fix


def test_tasks_that_srun_did_not_start_are_an_error_as_commands_have_it(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    [finding] = diagnose(
        DoctorConfig(), None, [check for check in CHECKS if check.name == "launch"]
    )
    assert finding.level == "error"
    assert "was not started by srun" in finding.text
    assert "put srun before it" in finding.fix


@pytest.mark.parametrize(
    ("asked", "level"),
    [(None, "ok"), ("8", "ok"), ("16", "warning"), ("2", "warning"), ("x", "warning")],
)
def test_threads_are_held_against_cores(monkeypatch, asked, level):
    monkeypatch.setattr(doctor_checks, "available_cores", lambda: 8)
    monkeypatch.setattr(doctor_checks, "driver_gpus", list)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    verdict = only(doctor_checks.check_cores)
    assert verdict.level == level
    assert verdict.text.startswith("8 cores")


def test_few_open_files_are_a_warning(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 10000))
    verdict = only(doctor_checks.check_open_files)
    assert (verdict.level, verdict.fix) == ("warning", "ulimit -n 4096")


class FakeCuda:
    """A torch that sees no GPU, for a reason."""

    class cuda:  # noqa: N801
        @staticmethod
        def is_available():
            return False

    class backends:  # noqa: N801
        class mps:  # noqa: N801
            @staticmethod
            def is_available():
                return False

    class version:  # noqa: N801
        cuda = None

    __version__ = "2.14.1+cpu"


def test_gpus_that_torch_does_not_see_are_an_error_with_the_reason(monkeypatch):
    listed = [doctor_checks.DriverGPU("H100", "550.1")] * 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    without = doctor_checks._no_gpu(FakeCuda, listed, "")
    assert without.level == "error"
    assert "2 GPUs, driver 550.1, but torch sees none: torch 2.14.1+cpu has no" in without.text
    FakeCuda.version.cuda = "13.0"
    old = doctor_checks._no_gpu(FakeCuda, listed, "The driver is too old (Triggered internally)")
    assert old.text.endswith("torch sees none: The driver is too old")
    assert "update the driver" in old.fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor_checks._no_gpu(FakeCuda, listed, "").fix == "unset CUDA_VISIBLE_DEVICES"
    assert doctor_checks._no_gpu(FakeCuda, [], "").level == "ok"


def test_the_driver_is_asked_for_names_and_version(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 550.54.15'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert doctor_checks.driver_gpus() == [("NVIDIA H100 80GB HBM3", "550.54.15")]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert doctor_checks.driver_gpus() == []


def test_every_check_has_an_end():
    names = {check.name for check in CHECKS}
    assert all(check.seconds <= 120 for check in CHECKS)
    assert all(set(check.after) <= names for check in CHECKS)
    assert doctor.CHECKS is CHECKS
