"""Replayed steps are steps, whatever lies behind the place that is read."""

from functools import partial

import pytest
import torch
from tape import record

from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.core.models import graphs
from tatscli.core.models.gpt import GPT, KVCache, condition_ids
from tatscli.core.models.graphs import RecordedSteps


def model(by_rule, **settings):
    values = {
        "layers": 2, "heads": 2, "width": 16, "codes": 12, "grid": (2, 3, 3),
        "condition": ConditionLayout.labels(4), "block_size": 18,
    }  # fmt: skip
    return by_rule(GPT(GPTConfig(**(values | settings)))).eval()


@pytest.fixture(params=[4, 256])
def first_span(request, monkeypatch):
    monkeypatch.setattr(graphs, "FIRST_SPAN", request.param)
    return request.param


@pytest.mark.parametrize("portions", [[1] * 18, [3, 1, 1, 9, 1, 1, 1, 1], [17, 1]])
@torch.inference_mode()
def test_replayed_steps_equal_steps(by_rule, first_span, portions):
    gpt = model(by_rule)
    steps, cache = RecordedSteps(gpt, 2, record), KVCache(gpt, 2)
    for window in range(2):  # the second finds what the first has left
        ids = torch.arange(36).view(2, 18) * (window + 1) % 16
        for part in ids.split(portions, 1):
            torch.testing.assert_close(steps(part), gpt.step(part, cache), atol=1e-5, rtol=0)
            assert (steps.cache.length, steps.cache.position) == (cache.length, cache.position)
        steps.cache.reset()
        cache.reset()


@torch.inference_mode()
def test_each_span_is_recorded_once_and_the_last_is_the_room(by_rule, monkeypatch):
    monkeypatch.setattr(graphs, "FIRST_SPAN", 4)
    runs = []

    def counted(run):
        runs.append(run.args)
        return record(run)

    steps = RecordedSteps(model(by_rule), 2, counted)
    for _ in range(2):
        for _ in range(18):
            steps(torch.ones(2, 1, dtype=torch.long))
        steps.cache.reset()
    assert runs == [(4,), (8,), (16,), (18,)]


@torch.inference_mode()
def test_infilling_reads_its_positions_out_of_order(by_rule, first_span):
    gpt = model(by_rule, grid=(3, 2, 2), block_size=12, infill=True)
    condition = condition_ids(gpt.config.condition, 2, torch.arange(2))
    first, last = torch.arange(16).view(2, 2, 4).unbind(1)
    steps, cache = RecordedSteps(gpt, 2, record), KVCache(gpt, 2)
    found = gpt.step_ends(condition, first % 12, last % 12, steps.cache)
    expected = gpt.step_ends(condition, first % 12, last % 12, cache)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for token in range(3):
        ids = torch.full((2, 1), 4 + token)
        torch.testing.assert_close(steps(ids), gpt.step(ids, cache), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_more_than_fits_is_refused(by_rule):
    steps = RecordedSteps(model(by_rule), 1, record)
    steps(torch.zeros(1, 18, dtype=torch.long))
    with pytest.raises(ValueError, match="19 positions, but there is room for 18"):
        steps(torch.zeros(1, 1, dtype=torch.long))


def test_the_tape_keeps_what_python_decided():
    # A step that took its place from Python would be caught: the tape would keep the first one.
    counter, total = iter(range(10)), torch.zeros(1)

    def run():
        return total + next(counter)

    replay, result = record(run)
    expected = result.clone()
    for _ in range(2):
        replay()
        assert torch.equal(result, expected)
    replay, result = record(partial(torch.add, total, 1))
    total.fill_(5)
    replay()
    assert result.item() == 6
