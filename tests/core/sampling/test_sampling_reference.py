"""Cuts and greedy samples of the published code.

Runs where TATS_REFERENCE names the folder of the reference files.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from in_turn import class_condition

from tatscli.core.checkpoint import load_gpt
from tatscli.core.models.gpt import condition_ids
from tatscli.core.models.inference import gpt_for_inference
from tatscli.core.sampling.filters import TokenFilter, candidates
from tatscli.core.sampling.generate import Chances, generate_long, generate_window

FOLDER = Path(os.environ.get("TATS_REFERENCE", ""))
pytestmark = pytest.mark.skipif(
    "TATS_REFERENCE" not in os.environ, reason="TATS_REFERENCE does not name the reference files"
)


def test_the_cuts_are_those_of_the_published_code() -> None:
    with np.load(FOLDER / "top_k_top_p.npz") as arrays:
        masks = {key: torch.from_numpy(arrays[key]) for key in arrays}
    logits = masks.pop("logits")
    assert masks
    for name, expected in masks.items():
        top_k, top_p = re.fullmatch(r"k(\d+)_p(.+)", name).groups()
        kept = candidates(logits, int(top_k), float(top_p))
        found = torch.zeros_like(expected)
        found.scatter_(1, kept.tokens, kept.probabilities > 0)
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("ready", [False, True], ids=["as trained", "ready for use"])
def test_greedy_samples_are_those_of_the_published_code(ready: bool) -> None:
    with np.load(FOLDER / "gpt_unconditional.npz") as arrays:
        numbers = {key: torch.from_numpy(arrays[key]) for key in arrays if "greedy" in key}
    gpt = load_gpt(FOLDER / "gpt_unconditional.ckpt")
    if ready:
        gpt = gpt_for_inference(gpt, torch.device("cpu"))
    greedy, condition = TokenFilter(temperature=0.0), class_condition(gpt, 0, range(2))
    short = generate_window(gpt, condition, Chances(0, range(2)), greedy)
    assert torch.equal(short.flatten(1), numbers["greedy_short"].flatten(1))
    for context in (1, 3):
        long = generate_long(
            gpt, condition, Chances(0, range(2)), greedy, length=7, context=context
        )
        expected = numbers[f"greedy_long_context{context}"]
        assert torch.equal(long.flatten(1), expected.flatten(1))


def test_greedy_samples_with_labels_are_those_of_the_published_code_with_its_ids() -> None:
    with np.load(FOLDER / "gpt_label.npz") as arrays:
        numbers = {key: torch.from_numpy(arrays[key]) for key in ("labels", "greedy_short_offset")}
    gpt = load_gpt(FOLDER / "gpt_label.ckpt")
    condition = condition_ids(gpt.config.condition, 2, numbers["labels"])
    published = TokenFilter(temperature=0.0, condition_ids=True)
    found = generate_window(gpt, condition, Chances(0, range(2)), published)
    offset = numbers["greedy_short_offset"] - gpt.config.condition.ids
    assert (offset < 0).any()
    assert torch.equal(found.flatten(1), offset.clamp(min=0).flatten(1))
