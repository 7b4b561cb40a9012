"""The checks of ``tats doctor``; each is a function that yields at least one verdict.

Libraries are imported inside the checks, since finding out whether that works is their work.
"""

import csv
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, requires, version
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tatscli import __version__
from tatscli.app.launch import launched
from tatscli.config.doctor import DoctorConfig
from tatscli.config.words import counted
from tatscli.core import weights
from tatscli.errors import DISK_HINTS, TatsError

Level = Literal["ok", "warning", "error"]
GB = 10**9
MB = 10**6

LITTLE_DISK = 10 * GB
"""A few checkpoints of the published sizes."""
LITTLE_MEMORY = 4 * GB
LITTLE_SHARED = GB
FEW_FILES = 1024
SLOW_START = 10.0
SLOW_IMPORT = 20.0
"""Seconds from which a start is worth a word."""
_WRITTEN = bytes(MB)
_BATCH = (8, 3, 16, 128, 128)
"""Of the published clips, float32: 25 MB."""
_SIDES = {"cpu": 1024}
_LARGE_SIDE = 8192
"""Of the matrices whose product is timed."""
_TORCH_FIX = "install torch as the selector of pytorch.org shows it for this machine's driver"
_NO_VISION = "python -m pip uninstall torchvision"
_CODEC_FIX = "python -m pip install --force-reinstall --only-binary av av"
_NO_WORKERS = "--workers 0 reads without such processes"
_OTHER_CACHE = "name another folder with TATS_CACHE"
_OTHER_RUNS = "write elsewhere"
_SHARED_FIX = "in a container, give it --shm-size 8g or --ipc host; --workers 0 needs none"


class Verdict(NamedTuple):
    """Level, text and fix of a finding, see ``doctor.Finding``."""

    level: Level
    text: str
    fix: str = ""


Look = Callable[[DoctorConfig], Iterator[Verdict]]


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        name: What it is called in the findings.
        look: Gives the verdicts.
        fix: What helps where it does not come to an end.
        seconds: Which it may take.
        after: Checks without which, where they found an error, this one says nothing new.
    """

    name: str
    look: Look
    fix: str = ""
    seconds: float = 20.0
    after: tuple[str, ...] = ()


def check_python(config: DoctorConfig) -> Iterator[Verdict]:
    """The interpreter, and whether the packages that tats names are there as it wants them."""
    from packaging.requirements import Requirement

    yield Verdict(
        "ok", f"tats {__version__}, Python {platform.python_version()} ({sys.executable})"
    )
    try:
        wanted = [Requirement(line) for line in requires("tatscli") or ()]
    except PackageNotFoundError:
        yield Verdict(
            "warning",
            "tats is not installed here, but runs from a folder: no versions to compare with",
            "python -m pip install PATH-OF-TATS",
        )
        return
    needed = [item for item in wanted if not item.marker or item.marker.evaluate({"extra": ""})]
    fits = True
    for item in needed:
        found = _installed(item.name)
        if not found or not item.specifier.contains(found, prereleases=True):
            fits = False
            yield Verdict(
                "error",
                f"{item.name} {found or 'is not installed'}; tats needs {item.specifier}",
                f'python -m pip install "{item.name}{item.specifier}"',
            )
    if fits:
        yield Verdict("ok", f"all {len(needed)} packages have versions that tats works with")


def check_torch(config: DoctorConfig) -> Iterator[Verdict]:
    """Whether torch can be imported, and for what it was built."""
    torch, seconds = _imported("torch")
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    yield _start(f"torch {torch.__version__}, built {built}", seconds)


def check_gpus(config: DoctorConfig) -> Iterator[Verdict]:
    """The driver, and the GPUs that torch sees: whether each computes, and what is free of it."""
    import torch

    listed = driver_gpus()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        yield _no_gpu(torch, listed, " ".join(str(item.message) for item in said))
        return
    driver = f", driver {listed[0].driver}" if listed else ""
    for number in range(count):
        facts = torch.cuda.get_device_properties(number)
        name = f"GPU {number}: {facts.name}{driver}, capability {facts.major}.{facts.minor}"
        try:
            ones = torch.ones(64, 64, device=f"cuda:{number}")
            assert float((ones @ ones).sum()) == 64**3
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            yield Verdict("error", f"{name}: {_line(error)}", _TORCH_FIX)
            continue
        text = f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free"
        if free < total / 2:
            yield Verdict("warning", text, "nvidia-smi shows which processes hold the rest")
        else:
            yield Verdict("ok", text)
    if count > 1 and not torch.distributed.is_nccl_available():
        yield Verdict("error", f"{count} GPUs, and this torch has no NCCL to train on several",
                      _TORCH_FIX)  # fmt: skip


def _no_gpu(torch: Any, listed: "list[DriverGPU]", said: str) -> Verdict:
    """Why there is none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.backends.mps.is_available():
        return Verdict("ok", "MPS, the GPU of this machine, by --device mps; auto takes the CPU")
    if not listed:
        return Verdict("ok", "no GPU, and no NVIDIA driver: commands compute on the CPU")
    there = f"{len(listed)} GPUs, driver {listed[0].driver}, but torch sees none"
    if hidden is not None:
        return Verdict(
            "warning",
            f"{there}: CUDA_VISIBLE_DEVICES is {hidden!r}",
            "unset CUDA_VISIBLE_DEVICES",
        )
    if not torch.version.cuda:
        return Verdict("error", f"{there}: torch {torch.__version__} has no CUDA", _TORCH_FIX)
    reason = said.split("(Triggered")[0].strip() or "it does not say why"
    return Verdict("error", f"{there}: {reason}", f"update the driver, or {_TORCH_FIX}")


class DriverGPU(NamedTuple):
    """A GPU that the driver lists."""

    name: str
    driver: str


def driver_gpus() -> list[DriverGPU]:
    """The GPUs that NVIDIA's driver lists, seen by torch or not; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run(
        [program, "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [DriverGPU(*row) for row in rows if not done.returncode and len(row) == 2]


def check_torchvision(config: DoctorConfig) -> Iterator[Verdict]:
    """Whether torchvision, which Lightning imports where it is there, goes with torch."""
    found = _installed("torchvision")
    if not found:
        yield Verdict("ok", "not installed; tats needs none")
        return
    import torch

    try:
        _, seconds = _imported("torchvision")
    except Exception as error:  # RuntimeError, OSError or AttributeError, as the mismatch has it
        yield Verdict(
            "error",
            f"torchvision {found} does not go with torch {torch.__version__}, and training imports "
            f"it: {_line(error)}",
            f"{_NO_VISION} (tats needs none); or both anew from one index: "
            "python -m pip install --force-reinstall torch torchvision",
        )
        return
    yield _start(f"torchvision {found} goes with torch {torch.__version__}", seconds)


def check_lightning(config: DoctorConfig) -> Iterator[Verdict]:
    """Whether Lightning can be imported."""
    module, seconds = _imported("lightning.pytorch")
    yield _start(f"lightning {module.__version__}", seconds)


def check_video(config: DoctorConfig) -> Iterator[Verdict]:
    """Whether PyAV writes and reads each codec that commands use."""
    import av
    import numpy as np

    from tatscli.core.data.video import Codec, probe, read_frames, write_video

    clip = np.full((8, 32, 32, 3), 40, np.uint8)
    clip[:, 8:24, 8:24] = 200
    works = []
    with tempfile.TemporaryDirectory(prefix="tats-doctor-") as folder:
        for codec in get_args(Codec):
            file = Path(folder) / codec
            try:
                write_video(file, clip, Fraction(8), codec=codec)
                read = read_frames(file, probe(file), range(8))
                error = float(np.abs(read.astype(float) - clip).mean())
            except (TatsError, ValueError) as problem:
                yield Verdict(
                    "error" if codec in ("h264", "ffv1") else "warning",
                    f"PyAV {av.__version__} cannot write and read {codec}: "
                    f"{str(problem).replace(str(file), 'a file')}",
                    _CODEC_FIX,
                )
                continue
            works.append(f"{codec} ({error:.2g})")
    if works:
        yield Verdict(
            "ok",
            f"PyAV {av.__version__} writes and reads {', '.join(works)}; mean error of 255 levels",
        )


def check_loader(config: DoctorConfig) -> Iterator[Verdict]:
    """Whether a process that reads clips starts, and hands a batch over."""
    seconds, again = first_batches(_Zeros())
    size = 4 * prod(_BATCH) / MB
    text = (
        f"a reading process gave its first batch after {seconds:.2g} s, and the next, "
        f"{size:.0f} MB, after {again:.2g} s"
    )
    if seconds > SLOW_START:
        yield Verdict("warning", text, _NO_WORKERS)
    else:
        yield Verdict("ok", text)


class _Zeros:
    """Four batches of nothing."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, place: int) -> Any:
        import torch

        if not 0 <= place < 4:
            raise IndexError(place)
        return torch.zeros(_BATCH)


def first_batches(dataset: Any) -> tuple[float, float]:
    """Seconds until a worker's first batch is here, and from then to the second."""
    from torch.utils.data import DataLoader

    start = time.perf_counter()
    batches = iter(DataLoader(dataset, batch_size=None, num_workers=1))
    float(next(batches).sum())
    first = time.perf_counter()
    float(next(batches).sum())
    return first - start, time.perf_counter() - first


def check_arithmetic(config: DoctorConfig) -> Iterator[Verdict]:
    """How fast a matrix product is in float32 and in bf16."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact, short = (_product_rate(kind, device) for kind in (torch.float32, torch.bfloat16))
    where = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    gain = short / exact
    advice = "worth --precision bf16" if gain > 1.2 else "stay with --precision float32"
    yield Verdict(
        "ok",
        f"{where}: {exact / GB:,.0f} G operations/s in float32, {short / GB:,.0f} in bf16, "
        f"{gain:.2g} times that: {advice}",
    )


def _product_rate(kind: Any, device: Any) -> float:
    """Operations a second of a matrix product, as a tenth of a second lets see it."""
    import torch

    from tatscli.core.limits import timed

    side = _SIDES.get(device.type, _LARGE_SIDE)
    matrix = torch.randn(side, side).to(device, kind)
    with torch.inference_mode():
        matrix @ matrix
        return 2 * side**3 / min(timed(lambda: matrix @ matrix, device, 0.1))


def check_memory(config: DoctorConfig) -> Iterator[Verdict]:
    """Memory that is free, under a container's limit too."""
    import torch

    from tatscli.core.memory import free_memory

    free = free_memory(torch.device("cpu"))
    if free is None:
        yield Verdict("ok", "this system does not say how much is free")
    elif free < LITTLE_MEMORY:
        yield Verdict(
            "warning", f"{free / GB:.1f} GB free", "--preset tiny, and a smaller --batch-size"
        )
    else:
        yield Verdict("ok", f"{free / GB:.1f} GB free")


def check_shared_memory(config: DoctorConfig) -> Iterator[Verdict]:
    """Room in /dev/shm, through which reading processes hand over batches."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Verdict("ok", "this system has no /dev/shm that could be too small")
        return
    usage = shutil.disk_usage(folder)
    text = f"/dev/shm has {_size(usage.free)} of {_size(usage.total)} free"
    batch = 4 * prod(_BATCH)
    if usage.free < 2 * batch:
        yield Verdict(
            "error",
            f"{text}: less than two batches of {batch / MB:.0f} MB, as each reading process needs",
            _SHARED_FIX,
        )
    elif usage.free < LITTLE_SHARED:
        yield Verdict("warning", f"{text}: little for several reading processes", _SHARED_FIX)
    else:
        yield Verdict("ok", text)


def check_cores(config: DoctorConfig) -> Iterator[Verdict]:
    """Cores that may be used, against the threads that the environment asks for."""
    count = available_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    found = launched_here()
    text = f"{counted(count, 'core')}, OMP_NUM_THREADS {asked or 'not set'}"
    if found > 1:
        text += f", {found} processes here"
    threads = int(asked) if asked.isdecimal() else 0
    if asked and not threads:
        yield Verdict("warning", f"{text}: not a number of threads", "unset OMP_NUM_THREADS")
    elif threads * found > count:
        yield Verdict(
            "warning",
            f"{text}: {threads * found} threads wait for each other",
            f"export OMP_NUM_THREADS={max(1, count // found)}",
        )
    elif 0 < threads * found < count and not driver_gpus():
        idle = counted(count - threads * found, "core")
        yield Verdict(
            "warning",
            f"{text}: computing on the CPU leaves {idle} idle",
            "unset OMP_NUM_THREADS",
        )
    else:
        yield Verdict("ok", text)


def available_cores() -> int:
    """Cores that this process may use: those of its affinity, or of a container's share."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        share = ceil(int(quota) / int(period))
    except (OSError, ValueError):  # not there, or "max"
        return count or 1
    return max(1, min(count or 1, share))


def launched_here() -> int:
    """Processes of this run on this machine, as far as the environment can be believed."""
    try:
        found = launched()
    except (TatsError, ValueError, KeyError, ZeroDivisionError):
        return 1
    return max(1, found.processes) if found else 1


def check_open_files(config: DoctorConfig) -> Iterator[Verdict]:
    """Files that a process may open; each tensor that a worker hands over is one."""
    try:
        import resource
    except ImportError:
        yield Verdict("ok", "this system has no such limit")
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < FEW_FILES:
        higher = 4096 if most < 0 else min(4096, most)
        yield Verdict("warning", f"{limit} at a time: few", f"ulimit -n {higher}")
    else:
        yield Verdict("ok", f"{limit} at a time" if limit >= 0 else "without limit")


def check_cache(config: DoctorConfig) -> Iterator[Verdict]:
    """Whether the cache can be written, and its free disk."""
    from tatscli.core.data.index import cache_folder

    yield from _folder("cache", cache_folder(), _OTHER_CACHE)


def check_runs(config: DoctorConfig) -> Iterator[Verdict]:
    """Whether runs can be written, and the free disk there."""
    yield from _folder("runs", config.out, _OTHER_RUNS)


def _folder(what: str, folder: Path, elsewhere: str) -> Iterator[Verdict]:
    """Really writes into a folder, or into the nearest one above it that is there."""
    text, start = str(folder), time.perf_counter()
    try:
        whole = folder.absolute()
        there = next(path for path in (whole, *whole.parents) if path.exists())
        if there != whole:
            text += f", to be made in {there},"
        with tempfile.TemporaryFile(dir=there, prefix=".tats-doctor-") as file:
            file.write(_WRITTEN)
            file.flush()
            os.fsync(file.fileno())
        usage = shutil.disk_usage(there)
    except OSError as error:
        hint = DISK_HINTS.get(error.errno or 0, "").split(", or write elsewhere")[0]
        fix = elsewhere if not hint or hint in elsewhere else f"{hint}; or {elsewhere}"
        yield Verdict("error", f"{text} cannot be written: {error.strerror}", fix)
        return
    took = time.perf_counter() - start
    if not usage.total:  # some file systems do not count
        yield Verdict("ok", f"{text} can be written")
        return
    text += f" can be written (1 MB in {took * 1000:.0f} ms), {_size(usage.free)} free"
    if usage.free < LITTLE_DISK:
        yield Verdict("warning", text, f"free some space; or {elsewhere}")
    else:
        yield Verdict("ok", text)


def check_weight_files(config: DoctorConfig) -> Iterator[Verdict]:
    """Which of the weight files from elsewhere are there, and are what they should be."""
    for name, file in weights.FILES.items():
        status = weights.status(name)
        # Any of the three files of I3D serves; the first is spoken of where none is there.
        if status is weights.Status.ABSENT and name in weights.I3D_FILES[1:]:
            continue
        match status:
            case weights.Status.VERIFIED:
                yield Verdict("ok", f"{name}: {file.path}, checksum right")
            case weights.Status.ABSENT:
                yield Verdict(
                    "warning",
                    f"{name} is not there, needed for: {file.used_for}",
                    f"tats weights fetch {name}; or do without: {file.instead}",
                )
            case weights.Status.WRONG:
                yield Verdict(
                    "error",
                    f"{name}: {file.path} has a wrong checksum",
                    f"tats weights fetch {name}",
                )


def check_launch(config: DoctorConfig) -> Iterator[Verdict]:
    """Whether the variables of torchrun and SLURM agree with each other."""
    environment = os.environ
    given = sorted(name for name in environment if name in _COUNTS)
    for name in given:
        if not environment[name].isdecimal():
            yield Verdict(
                "error", f"{name} is {environment[name]!r}, not a number", f"unset {name}"
            )
            return
    number = {name: int(environment[name]) for name in given}
    try:
        found = launched()
    except KeyError as error:
        yield Verdict(
            "error",
            f"TORCHELASTIC_RUN_ID is set, as by torchrun, but {error.args[0]} is not",
            "unset TORCHELASTIC_RUN_ID, or start with torchrun",
        )
        return
    wrong = list(_contradictions(number, found.by if found else ""))
    for text, fix in wrong:
        yield Verdict("error", text, fix)
    if wrong:
        return
    if found is None:
        job = environment.get("SLURM_JOB_ID")
        yield Verdict(
            "ok",
            f"SLURM job {job} of one task: a command starts its own processes"
            if job
            else "neither torchrun nor SLURM: a command starts its own processes",
        )
        return
    nodes = counted(found.nodes, "machine")
    yield Verdict("ok", f"{found.by}: {counted(found.processes, 'process')} on each of {nodes}")


_COUNTS = frozenset(
    {"RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"}
    | {"SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NNODES", "SLURM_NODEID"}
    | {"SLURM_NTASKS_PER_NODE"}
)
"""Variables that are whole numbers where they are set."""


def _contradictions(number: dict[str, int], by: str) -> Iterator[tuple[str, str]]:
    """Pairs of variables that cannot both be right, and what to do."""
    again = "start with torchrun, which sets all of them" if by == "torchrun" else ""
    slurm = "unset them, or start with srun, which sets all of them"
    if not by and number.get("RANK", number.get("LOCAL_RANK", 0)):
        name = "RANK" if number.get("RANK") else "LOCAL_RANK"
        yield (
            f"{name} is {number[name]}, and nothing started several processes: commands take "
            "themselves for a further one, and say and write nothing",
            f"unset {name}",
        )
    for rank, count, fix in (
        ("RANK", "WORLD_SIZE", again),
        ("LOCAL_RANK", "LOCAL_WORLD_SIZE", again),
        ("SLURM_PROCID", "SLURM_NTASKS", slurm),
        ("SLURM_LOCALID", "SLURM_NTASKS_PER_NODE", slurm),
        ("SLURM_NODEID", "SLURM_NNODES", slurm),
    ):
        if rank in number and count in number and number[rank] >= number[count]:
            yield (
                f"{rank} is {number[rank]} and {count} {number[count]}: ranks count from 0",
                fix or f"unset {rank} and {count}",
            )
    world, local = number.get("WORLD_SIZE", 0), number.get("LOCAL_WORLD_SIZE", 0)
    if by == "torchrun" and (not local or world % local):
        yield (f"WORLD_SIZE is {world} and LOCAL_WORLD_SIZE {local}: not a multiple", again)
    tasks, nodes = number.get("SLURM_NTASKS", 1), number.get("SLURM_NNODES", 1)
    each = number.get("SLURM_NTASKS_PER_NODE", 0)
    if each and tasks != each * nodes:
        yield (
            f"SLURM_NTASKS is {tasks}, but {nodes} machines (SLURM_NNODES) with {each} tasks each "
            f"(SLURM_NTASKS_PER_NODE) make {each * nodes}",
            "ask with #SBATCH --nodes=N and --ntasks-per-node=M, and leave --ntasks out",
        )


_TORCH = ("torch",)
CHECKS = (
    Check("python", check_python),
    Check("torch", check_torch, _TORCH_FIX, 120),
    Check("torchvision", check_torchvision, f"{_NO_VISION}; tats needs none", 60, _TORCH),
    Check(
        "lightning",
        check_lightning,
        "python -m pip install --force-reinstall lightning",
        60,
        ("torch", "torchvision"),
    ),
    Check(
        "gpu",
        check_gpus,
        "nvidia-smi shows whether the driver answers; --device cpu does without",
        after=_TORCH,
    ),
    Check("arithmetic", check_arithmetic, "--device cpu, or --precision float32", after=_TORCH),
    Check("video", check_video, _CODEC_FIX, after=_TORCH),
    Check("loader", check_loader, _NO_WORKERS, after=_TORCH),
    Check("shm", check_shared_memory),
    Check("memory", check_memory, after=_TORCH),
    Check("cores", check_cores),
    Check("files", check_open_files),
    Check("cache", check_cache, f"the disk does not answer; {_OTHER_CACHE}"),
    Check("runs", check_runs, f"the disk does not answer; {_OTHER_RUNS}"),
    Check("weights", check_weight_files, f"the disk does not answer; {_OTHER_CACHE}", 60),
    Check("launch", check_launch),
)


def _imported(name: str) -> tuple[Any, float]:
    """A module, and the seconds that importing it took."""
    from importlib import import_module

    start = time.perf_counter()
    module = import_module(name)
    return module, time.perf_counter() - start


def _start(text: str, seconds: float) -> Verdict:
    text += f"; imported in {seconds:.1f} s"
    if seconds < SLOW_IMPORT:
        return Verdict("ok", text)
    return Verdict("warning", text, "put the environment on a local disk")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _size(count: int) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / MB:,.0f} MB"
