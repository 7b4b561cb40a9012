"""``tats ckpt``: what checkpoints hold, and whether they are whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tatscli import __version__
from tatscli.app.ckpt import describe_checkpoint, verify_checkpoints
from tatscli.core.checkpoint import FORMAT, read_vqgan, save_original, save_vqgan
from tatscli.errors import CheckpointError


def test_a_run_and_a_model_alone_are_told_apart(
    gpt_run: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    info = describe_checkpoint(gpt_run)
    assert (info.holds, info.layout, info.continues, info.processes) == ("gpt", "tats", True, 1)
    assert (info.format, info.version) == (FORMAT, __version__)
    assert (info.classes, info.conditions, info.grid) == (
        ["circle", "square"],
        ["label"],
        [2, 2, 2],
    )
    vqgan = read_vqgan(vqgan_run)
    assert info.vqgan == vqgan.model.fingerprint()
    save_vqgan(vqgan, tmp_path / "alone.ckpt")
    alone = describe_checkpoint(tmp_path / "alone.ckpt")
    assert (alone.holds, alone.continues, alone.processes) == ("vqgan", False, None)
    assert alone.parameters == sum(p.numel() for p in vqgan.model.parameters())
    assert (alone.clip["resolution"], alone.frame_rate) == (8, 8.0)
    assert alone.bytes == (tmp_path / "alone.ckpt").stat().st_size


def test_a_published_file_is_one_to_start_from(vqgan_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "published.ckpt"
    save_original(read_vqgan(vqgan_run), file)
    info = describe_checkpoint(file)
    assert (info.holds, info.layout, info.format, info.version) == ("vqgan", "published", None, "")
    assert (info.continues, info.vqgan) == (False, read_vqgan(vqgan_run).model.fingerprint())
    [verdict] = verify_checkpoints([file])
    assert (verdict.intact, verdict.continues) == (True, False)


def test_clips_that_do_not_fit_the_model_have_no_grid(vqgan_run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(vqgan_run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["tats"]["clip"]["resolution"] = 9
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    info = describe_checkpoint(tmp_path / "odd.ckpt")
    assert (info.grid, info.clip["resolution"]) == ([], 9)


def test_all_checkpoints_of_a_run_are_read(vqgan_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(vqgan_run, run)
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    verdicts = {v.file.name: v for v in verify_checkpoints([run])}
    assert verdicts["best.ckpt"].intact and verdicts["best.ckpt"].continues
    assert not verdicts["last.ckpt"].intact
    assert verdicts["last.ckpt"].reason.startswith("is damaged: its record ")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        verify_checkpoints([tmp_path])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_found(
    vqgan_run: Path, tmp_path: Path, wrong: float
) -> None:
    checkpoint = torch.load(vqgan_run / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(key for key in checkpoint["state_dict"] if key.endswith("weight"))
    weight = checkpoint["state_dict"][name]
    weight[(-1,) * weight.ndim] = wrong
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    [verdict] = verify_checkpoints([tmp_path / "nan.ckpt"])
    assert not verdict.intact and name in verdict.reason


def test_the_program_says_it_and_ends_accordingly(tats: Any, vqgan_run: Path) -> None:
    good = tats("ckpt", "verify", vqgan_run, "--json")
    assert good.code == 0 and all(row["intact"] for row in json.loads(good.out))
    Path("cut.ckpt").write_bytes((vqgan_run / "checkpoints" / "best.ckpt").read_bytes()[:-100])
    bad = tats("ckpt", "verify", vqgan_run, "cut.ckpt")
    assert bad.code == 1 and "cut.ckpt" in bad.out
    told = tats("ckpt", "info", vqgan_run)
    assert told.code == 0 and "codes 16" in told.out
    missing = tats("ckpt", "info", "none.ckpt")
    assert missing.code == 1 and "none.ckpt does not exist" in missing.err
