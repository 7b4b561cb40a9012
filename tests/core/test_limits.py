"""The arithmetic of limits; how fast anything is, no test asks."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core import limits
from tatscli.core.data.video import VideoInfo, probe, write_video
from tatscli.core.limits import (
    DecodingCost,
    Machine,
    Runs,
    Window,
    Work,
    codebook_operations,
    counted_operations,
    gpt_operations,
    gpt_step_weights,
    gpt_training_operations,
    sampling_work,
)
from tatscli.core.models.conv3d import Conv3d, SamePadConvTranspose3d
from tatscli.core.models.gpt import GPT, condition_ids
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import Chances, generate_long, generate_window

CONFIG = GPTConfig(
    layers=2,
    heads=2,
    width=8,
    codes=10,
    grid=(3, 1, 2),
    condition=ConditionLayout.unconditional(),
    block_size=6,
)
BLOCK_WEIGHTS = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 2 * (8 + 8)
STEP_WEIGHTS = 2 * BLOCK_WEIGHTS + (8 + 8) + 10 * 8


def machine(**figures: float) -> Machine:
    known = {"peak": 100.0, "float32_peak": 50.0, "bandwidth": 10.0} | figures
    return Machine(
        device="cpu",
        name="a computer",
        cores=2,
        threads=2,
        precision="bf16",
        torch="2",
        python="3",
        date="",
        **known,
    )


@pytest.mark.parametrize(
    ("work", "binds", "seconds"),
    [
        (Work(operations=200, bytes=10), "operations", 2),
        (Work(operations=100, float32_operations=100, bytes=10), "operations", 3),
        (Work(operations=200, bytes=50), "bytes", 5),
        (Work(codec=0.5), "codec", 0.5),
    ],
)
def test_the_larger_limit_binds(work: Work, binds: str, seconds: float) -> None:
    limit = machine().limit(work)
    assert (limit.binds, limit.seconds) == (binds, seconds)


def test_operations_of_products_are_those_counted_by_hand() -> None:
    with counted_operations() as operations:
        F.linear(torch.ones(3, 4, 8), torch.ones(16, 8))
        F.conv3d(torch.ones(1, 3, 4, 8, 8), torch.ones(5, 3, 3, 3, 3))
    assert operations() == 2 * 12 * 8 * 16 + 2 * 5 * 3 * 27 * (2 * 6 * 6)


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_on_padding_are_not_counted(stride: int) -> None:
    # On one axis of 4, outputs at 0, 1, 2, 3 meet 2, 3, 3, 2 of 3 taps; every other one, 2 and 3.
    meetings = {1: 10, 2: 5}[stride]
    x, weight = torch.ones(2, 3, 4, 4, 4), torch.ones(5, 3, 3, 3, 3)
    with counted_operations() as operations:
        F.conv3d(x, weight, stride=stride, padding=1)
    assert operations() == 2 * 2 * 5 * 3 * meetings**3


def test_operations_for_outputs_that_are_cut_off_are_not_counted() -> None:
    # The decoder's way to twice the size: each of 8 outputs of an axis is a sum over 2 taps of 4.
    layer = SamePadConvTranspose3d(3, 5, 4, (2, 2, 2))
    with counted_operations() as operations:
        out = layer(torch.ones(1, 3, 4, 4, 4))
    assert out.shape[2:] == (8, 8, 8)
    assert operations() == 2 * 3 * 5 * (8 * 2) ** 3


def test_gradients_of_a_convolution_cost_what_it_costs_each() -> None:
    x, weight = torch.ones(1, 2, 4, 4, 4), torch.ones(3, 2, 3, 3, 3, requires_grad=True)
    once = 2 * 3 * 2 * 10**3
    for needs, times in ((False, 2), (True, 3)):
        with counted_operations() as operations:
            F.conv3d(x.requires_grad_(needs), weight, padding=1).sum().backward()
        assert operations() == times * once


def test_weights_of_a_step_are_all_but_the_tables_of_embeddings() -> None:
    gpt = GPT(CONFIG)
    tables = gpt.tok_emb.weight.numel() + gpt.pos_emb.numel()
    assert gpt_step_weights(CONFIG) == STEP_WEIGHTS
    assert sum(p.numel() for p in gpt.parameters()) - tables == STEP_WEIGHTS


def test_bytes_of_sampling_are_weights_and_keys_and_values_at_every_step() -> None:
    # Steps read 1 position, then 1 and 1 more; keys and values of 2 layers, 8 wide, of 3 samples.
    numbers = 3 * STEP_WEIGHTS + (1 + 2 + 3) * 3 * 2 * 2 * 8
    assert sampling_work(CONFIG, 3, [Window(1, 3)], "float32").bytes == 4 * numbers
    assert sampling_work(CONFIG, 3, [Window(1, 3)], "bf16").bytes == 2 * numbers
    # A window that opens with 3 positions, and a second one of a single token.
    numbers = 3 * STEP_WEIGHTS + (3 + 4 + 3) * 3 * 2 * 2 * 8
    assert sampling_work(CONFIG, 3, [Window(3, 2), Window(3, 1)], "bf16").bytes == 2 * numbers


def attention(pairs: int, batch: int) -> int:
    """Operations of attention, which torch counts on some devices and in some ways of doing it."""
    return 4 * 2 * 8 * pairs * batch


@contextmanager
def counted_layers() -> Iterator[Callable[[], int]]:
    """Operations of the linear layers alone."""
    with FlopCounterMode(display=False) as counter:
        yield lambda: sum(
            count
            for operator, count in counter.get_flop_counts()["Global"].items()
            if operator in (torch.ops.aten.mm, torch.ops.aten.addmm)
        )


@pytest.mark.parametrize("sampler", ["short", "long"])
def test_operations_of_sampling_are_those_of_the_real_sampler(sampler: str) -> None:
    gpt, batch = GPT(CONFIG).eval(), 2
    asked = condition_ids(CONFIG.condition, batch), Chances(0, range(batch)), TokenFilter()
    with counted_layers() as operations:
        if sampler == "short":
            generate_window(gpt, *asked, frames=2)
            windows, pairs = [Window(1, 4)], 1 + 2 + 3 + 4
        else:
            given = torch.zeros(batch, 3, 1, 2, dtype=torch.long)
            generate_long(gpt, *asked, length=5, context=1, given=given)
            # One frame of two tokens behind two, then one behind one.
            windows, pairs = [Window(5, 2), Window(3, 2)], (15 + 6) + (6 + 4)
    found = sampling_work(CONFIG, batch, windows, "float32").operations
    assert found == operations() + attention(pairs, batch)


def test_operations_of_a_training_step_are_three_times_those_of_the_forward_pass() -> None:
    gpt, batch = GPT(CONFIG), 2
    with counted_layers() as operations:
        logits = gpt(condition_ids(CONFIG.condition, batch), torch.zeros(batch, 6).long())
        logits.sum().backward()
    pairs = 6 * 7 // 2
    assert gpt_training_operations(CONFIG, batch) == operations() + 3 * attention(pairs, batch)
    assert gpt_operations(CONFIG, 6, heads=6) * 3 * batch == gpt_training_operations(CONFIG, batch)


def test_operations_of_the_codebook_are_those_of_the_real_one() -> None:
    config = VQGANConfig(codes=16, embedding_dim=4, hidden_channels=2, downsample=(2, 4, 4))
    model = VQGAN(config).eval()
    with counted_operations() as operations:
        model.codebook.nearest(torch.zeros(2, 4, 2, 3, 5))
    assert operations() == codebook_operations(config, 2 * 2 * 3 * 5) == 2 * 60 * 16 * 4


def test_a_training_step_moves_its_weights_seven_times() -> None:
    assert limits.training_bytes([torch.ones(3, 5), torch.ones(2)]) == 7 * 4 * 17
    assert limits.size_of([torch.ones(3), torch.ones(3, dtype=torch.bfloat16)]) == 12 + 6


def test_frames_are_decoded_from_the_key_frame_before_a_clip_to_its_last() -> None:
    times = np.arange(12) / 25
    info = VideoInfo(times, times[[0, 5]], 8, 8, 0, 25.0)
    cost = DecodingCost(shown=10.0, passed=1.0)
    assert cost.seconds(info, [7, 9]) == 2 * 1 + 3 * 10
    assert cost.seconds(info, [5]) == 10
    assert cost.seconds(info, [4, 6]) == 4 * 1 + 3 * 10


def test_what_a_decoder_costs_is_measured_on_the_file(tmp_path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    write_video(tmp_path / "a.mp4", frames, 25)
    cost = limits.decoding_cost(tmp_path / "a.mp4", probe(tmp_path / "a.mp4"))
    assert 0 < cost.passed <= cost.shown


def test_runs_are_two_or_more_and_take_long_enough() -> None:
    told: list[tuple[int, int]] = []
    runs = Runs(5.0, lambda done, total: told.append((done, total)))
    for seconds in (1.0, 1.0, 2.0):
        runs.add(seconds)
        assert not runs.enough
    runs.add(1.0)
    assert runs.enough
    assert told == [(1, 5), (2, 5), (3, 4), (4, 4)]
    short = Runs(0.5)
    short.add(1.0)
    assert not short.enough
    short.add(1.0)
    assert short.enough


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_machine_is_measured(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(limits, "_TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(limits, "_SQUARES", {"cpu": (8, 16)})
    monkeypatch.setattr(limits, "_FRAMES", {"cpu": 1})
    monkeypatch.setattr(limits, "_OUT_OF_CACHE", {"cpu": 2**20})
    monkeypatch.setattr(limits, "_MATRIX_SIDE", 64)
    told: list[tuple[int, int]] = []
    found = limits.measure_machine(
        torch.device("cpu"), precision, lambda done, total: told.append((done, total))
    )
    assert found.precision == precision
    for figure in (found.peak, found.float32_peak, found.bandwidth):
        assert figure > 0
        assert math.isfinite(figure)
    assert found.threads == torch.get_num_threads()
    assert told[-1][0] == told[-1][1]


def test_a_convolution_counts_whoever_computes_it() -> None:
    layer, clip = Conv3d(3, 8, 3, (1, 2, 2)), torch.rand(1, 3, 6, 18, 18)
    counts = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), counted_operations() as operations:
            layer(clip)
        counts.append(operations())
    assert counts[0] == counts[1] == 2 * 3 * 8 * 27 * 4 * 8 * 8
