"""The job script of the README, under a stand-in for SLURM (R6)."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import torch
from program import Start, write_config
from tiny_app import gpt_config

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SRUN = """#!{python}
import os, subprocess, sys
ranks = range(int(os.environ["SLURM_NTASKS"]))
of = [dict(os.environ, SLURM_PROCID=str(n), SLURM_LOCALID=str(n), SLURM_NODEID="0") for n in ranks]
tasks = [subprocess.Popen(sys.argv[1:], env=environment) for environment in of]
open({pids!r}, "w").write(" ".join(str(task.pid) for task in tasks))
sys.exit(max(abs(task.wait()) for task in tasks))
"""
TATS = """#!/bin/bash
[[ "$*" == "vqgan train --data VIDEOS --out runs/vqgan --resume auto --requeue" ]] || exit 99
exec {python} -m tatscli gpt train --config {config} --resume auto --requeue
"""


def executable(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def test_a_job_whose_time_ends_is_started_again_and_goes_on(
    tokens: Path, tmp_path: Path, start: Start
) -> None:
    script = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", README, re.DOTALL)
    assert script, "the README has a job script"
    run, tools, pids = tmp_path / "run", tmp_path / "bin", tmp_path / "pids"
    tools.mkdir()
    loop = {"val_check_interval": "1000", "checkpoint_every": 20, "grid_every": 100_000,
            "max_steps": 100_000, "val_clips": 2}  # fmt: skip
    config = write_config(gpt_config(tokens, run, train=loop), tmp_path / "c.yaml")
    executable(tools / "srun", SRUN.format(python=sys.executable, pids=str(pids)))
    executable(tools / "tats", TATS.format(python=sys.executable, config=config))
    executable(tools / "scontrol", f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\n')
    executable(tmp_path / "job.sh", script[1])
    slurm = {
        "SLURM_JOB_ID": "4017", "SLURM_JOB_NAME": "vqgan", "SLURM_NTASKS": "2", "SLURM_NNODES": "1",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "localhost",
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    last, steps = run / "checkpoints" / "last.ckpt", []
    for _ in range(2):
        before = last.stat().st_mtime_ns if last.exists() else 0
        job = start(before=("bash", str(tmp_path / "job.sh")), **slurm)
        while not last.exists() or last.stat().st_mtime_ns == before:
            assert job.process.poll() is None, job.end()
            time.sleep(0.05)
        for task in pids.read_text().split():
            os.kill(int(task), signal.SIGUSR1)
        code, _, err = job.end()
        assert code == 128 + signal.SIGUSR1, err
        assert "SLURM starts job 4017 again" in err and "Traceback" not in err
        assert job.left() == []
        steps.append(torch.load(last, weights_only=True)["global_step"])
    assert 0 < steps[0] < steps[1]
    assert (tmp_path / "asked").read_text() == "requeue 4017\n" * 2
    rows = (run / "metrics.csv").read_text().splitlines()
    losses = [int(row.split(",")[0]) for row in rows if ",train/loss," in row]
    assert losses == list(range(steps[1]))
