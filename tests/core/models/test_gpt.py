import re

import pytest
import torch
from torch import nn

from tatscli.config.gpt import ConditionLayout, ConditionPart, GPTConfig
from tatscli.core.models import gpt as gpt_module
from tatscli.core.models.gpt import (
    GPT,
    KVCache,
    condition_ids,
    decay_groups,
    drop_parts,
    infill_mask,
)


def config(condition=None, **settings):
    layout = condition or ConditionLayout.unconditional()
    values = {
        "layers": 2,
        "heads": 2,
        "width": 16,
        "codes": 12,
        "grid": (2, 3, 3),
        "condition": layout,
        "block_size": 18,
    }
    return GPTConfig(**(values | settings))


LABELS = config(ConditionLayout.labels(4))
INFILL = config(grid=(3, 2, 2), block_size=12, infill=True)
INFILL_LABELS = config(ConditionLayout.labels(4), grid=(3, 2, 2), block_size=12, infill=True)


def sequence(of, batch=2):
    tokens = torch.arange(batch * of.video_tokens).view(batch, -1) ** 2 % of.codes
    labels = torch.arange(batch) if of.condition.part("label") else None
    return condition_ids(of.condition, batch, labels), tokens


def new_cache(model, batch=2, **settings):
    return KVCache(model, batch, **settings)


def test_row_i_does_not_see_token_i_or_later(by_rule):
    model = by_rule(GPT(config()))
    seen = []
    model.tok_emb.register_forward_hook(lambda _m, _i, out: seen.append(out) or out.retain_grad())
    logits = model(*sequence(model.config))
    for row in (0, 5, 17):
        seen[0].grad = None
        logits[:, row].square().sum().backward(retain_graph=True)
        reached = seen[0].grad.abs().sum((0, 2)) > 0
        # Position 0 is the condition, position i the token i - 1.
        assert reached.tolist() == [True] * (row + 1) + [False] * (17 - row)


def test_last_token_is_never_an_input(by_rule):
    model = by_rule(GPT(config()))
    condition, tokens = sequence(model.config)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 12
    assert torch.equal(model(condition, tokens), model(condition, changed))


@pytest.mark.parametrize("of", [config(), LABELS], ids=["start", "label"])
def test_cached_steps_equal_the_training_forward(by_rule, of):
    model = by_rule(GPT(of))
    condition, tokens = sequence(of)
    with torch.no_grad():
        full = model(condition, tokens)
        cache = new_cache(model)
        steps = [model.step(condition, cache)]
        for i in range(of.video_tokens - 1):
            steps.append(model.step(tokens[:, i : i + 1] + of.condition.ids, cache))
    assert cache.length == of.positions
    torch.testing.assert_close(torch.stack(steps, 1), full, atol=1e-5, rtol=0)


@pytest.mark.parametrize("segment", [1, 4, 17, 64])
@pytest.mark.parametrize("portions", [[1] * 18, [3, 9, 1, 1, 4], [7, 1, 1, 8, 1], [17, 1]])
def test_the_segments_of_the_cache_make_no_difference(by_rule, monkeypatch, segment, portions):
    monkeypatch.setattr(gpt_module, "SEGMENT", segment)
    model = by_rule(GPT(config()))
    condition, tokens = sequence(model.config)
    ids = torch.cat([condition, tokens + model.config.condition.ids], 1)[:, :-1]
    with torch.no_grad():
        full = model(condition, tokens)
        cache = new_cache(model)
        assert cache.attends
        found = [model.step(part, cache) for part in ids.split(portions, 1)]
    ends = torch.tensor(portions).cumsum(0) - 1
    torch.testing.assert_close(torch.stack(found, 1), full[:, ends], atol=1e-5, rtol=0)


@pytest.mark.parametrize("segment", [1, 4, 64])
def test_a_cache_in_one_segment_gives_the_same(by_rule, monkeypatch, segment):
    monkeypatch.setattr(gpt_module, "SEGMENT", segment)
    model = by_rule(GPT(config()))
    caches = [new_cache(model), new_cache(model)]
    caches[1].attends = False  # as on a GPU: attention is torch's own
    ids = torch.cat(list(sequence(model.config)), 1)[:, :12] % 12
    with torch.no_grad():
        for part in ids.split([5, 1, 1, 4, 1], 1):
            first, second = (model.step(part, cache) for cache in caches)
            torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_infilling_shows_both_ends_to_all_and_is_causal_between():
    # One condition token, then latent frames of four tokens; the very last is never an input.
    visible = infill_mask(INFILL)
    ends = [True] * 5 + [False] * 4 + [True] * 3
    for row in [*range(5), 9, 10, 11]:
        assert visible[row].tolist() == ends
    for row in range(5, 9):
        middle = [column <= row for column in range(5, 9)]
        assert visible[row].tolist() == [True] * 5 + middle + [True] * 3


@pytest.mark.parametrize("of", [INFILL, INFILL_LABELS], ids=["start", "label"])
def test_no_row_between_sees_its_own_token_or_a_later_one_between(by_rule, of):
    model = by_rule(GPT(of))
    seen = []
    model.tok_emb.register_forward_hook(lambda _m, _i, out: seen.append(out) or out.retain_grad())
    logits = model(*sequence(of))
    for row in range(4, 8):
        seen[0].grad = None
        logits[:, row].square().sum().backward(retain_graph=True)
        reached = seen[0].grad.abs().sum((0, 2)) > 0
        assert reached.tolist() == [True] * (row + 1) + [False] * (8 - row) + [True] * 3


@pytest.mark.parametrize("of", [INFILL, INFILL_LABELS], ids=["start", "label"])
@pytest.mark.parametrize("known", [0, 2])
def test_cached_infilling_equals_the_training_forward(by_rule, of, known):
    model, offset = by_rule(GPT(of)), of.condition.ids
    condition, tokens = sequence(of)
    cache = new_cache(model)
    with torch.no_grad():
        full = model(condition, tokens)
        steps = [model.step_ends(condition, tokens[:, :4], tokens[:, -4:], cache)]
        if known:
            steps = [model.step(tokens[:, 4 : 4 + known] + offset, cache)]
        for i in range(4 + known, 7):
            steps.append(model.step(tokens[:, i : i + 1] + offset, cache))
    torch.testing.assert_close(torch.stack(steps, 1), full[:, 4 + known : 8], atol=1e-5, rtol=0)


def test_infilling_wants_whole_windows():
    model = GPT(INFILL)
    condition, tokens = sequence(INFILL)
    with pytest.raises(ValueError, match=r"tokens of shape \(2, 11\), expected \(2, 12\)"):
        model(condition, tokens[:, :-1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grid": (2, 3, 3)}, "at least 3 latent frames, got 2"),
        ({"latent_stride": 2}, "key frames or fills in between them, not both"),
    ],
)
def test_infilling_settings_that_cannot_hold_are_named(settings, says):
    with pytest.raises(ValueError, match=says):
        config(**({"grid": (3, 2, 2), "infill": True} | settings))


def test_what_is_visible_is_not_saved():
    assert GPT(INFILL).state_dict().keys() == GPT(config()).state_dict().keys()


@pytest.mark.parametrize("chunks", [[7, 11], [1, 6, 1, 10], [18]])
def test_any_chunks_equal_the_training_forward(by_rule, chunks):
    model = by_rule(GPT(config()))
    condition, tokens = sequence(model.config)
    ids = torch.cat([condition, tokens], 1)
    cache, stop = new_cache(model), 0
    with torch.no_grad():
        full = model(condition, tokens)
        for chunk in chunks:
            logits = model.step(ids[:, stop : stop + chunk], cache)
            stop += chunk
            torch.testing.assert_close(logits, full[:, stop - 1], atol=1e-5, rtol=0)


def test_a_reset_cache_forgets(by_rule):
    model = by_rule(GPT(config()))
    cache = new_cache(model)
    with torch.no_grad():
        first = model.step(torch.tensor([[0, 3, 5]] * 2), cache)
        cache.reset()
        model.step(torch.tensor([[7, 7, 7, 7]] * 2), cache)
        cache.reset()
        again = model.step(torch.tensor([[0, 3, 5]] * 2), cache)
    assert torch.equal(first, again)


def test_a_token_after_the_condition_is_offset(by_rule):
    model = by_rule(GPT(LABELS))
    cache = new_cache(model, batch=1)
    with torch.no_grad():
        full = model(torch.tensor([[2]]), torch.tensor([[3, 0]]))
        model.step(torch.tensor([[2]]), cache)
        logits = model.step(torch.tensor([[3 + 5]]), cache)
    torch.testing.assert_close(logits, full[:, 1], atol=1e-5, rtol=0)


def test_ids_out_of_range_are_named():
    model = GPT(LABELS)
    with pytest.raises(ValueError, match="condition id 17 is outside 0 to 16"):
        model(torch.tensor([[17]]), torch.tensor([[0]]))
    with pytest.raises(ValueError, match="video token 12 is outside 0 to 11"):
        model(torch.tensor([[0]]), torch.tensor([[12]]))
    with pytest.raises(ValueError, match="video token -1 is outside 0 to 11"):
        model(torch.tensor([[0]]), torch.tensor([[-1]]))


def test_too_many_positions_are_named():
    model = GPT(config())
    condition, tokens = sequence(model.config)
    with pytest.raises(ValueError, match=r"tokens of shape \(2, 19\), expected \(2, 18\)"):
        model(condition, torch.cat([tokens, tokens[:, :1]], 1))
    with pytest.raises(ValueError, match="5 positions, but there is room for 4"):
        model.step(tokens[:, :5], new_cache(model, positions=4))


@pytest.mark.parametrize(
    ("condition", "tokens", "says"),
    [
        ((1, 2), (1, 4), r"condition of shape \(1, 2\), expected \(B, 1\)"),
        ((2,), (2, 4), r"condition of shape \(2,\), expected \(B, 1\)"),
        ((2, 1), (3, 4), r"tokens of shape \(3, 4\), expected \(2, L\)"),
        ((2, 1), (2, 2, 3, 3), r"tokens of shape \(2, 2, 3, 3\), expected \(2, 18\)"),
        ((2, 1), (18,), r"tokens of shape \(18,\), expected \(2, 18\)"),
    ],
)
def test_other_shapes_are_refused_with_both(condition, tokens, says):
    with pytest.raises(ValueError, match=says):
        GPT(config())(torch.zeros(condition, dtype=int), torch.zeros(tokens, dtype=int))


def test_ids_are_whole_numbers_of_any_width(by_rule):
    model = by_rule(GPT(LABELS))
    condition, tokens = sequence(LABELS)
    narrow = [ids.to(torch.uint16) for ids in (condition, tokens)]
    assert torch.equal(model(*narrow), model(condition, tokens))
    with pytest.raises(ValueError, match="tokens of torch.float32, expected whole numbers"):
        model(condition, tokens.float())


def test_condition_ids_of_each_layout():
    assert condition_ids(ConditionLayout.unconditional(), 3, None).tolist() == [[0]] * 3
    labels = torch.tensor([4, 0])
    ids = condition_ids(ConditionLayout.labels(4), 2, labels)
    assert ids.tolist() == [[4], [0]]
    assert ids.dtype == torch.int64


def test_labels_must_fit_the_layout():
    with pytest.raises(ValueError, match="label 5 is outside 0 to 4"):
        condition_ids(ConditionLayout.labels(4), 1, torch.tensor([5]))
    with pytest.raises(ValueError, match="label ids are missing, and the condition is label"):
        condition_ids(ConditionLayout.labels(4), 1, None)
    with pytest.raises(ValueError, match="label ids are given, and the condition is none"):
        condition_ids(ConditionLayout.unconditional(), 1, torch.tensor([0]))


# Ids of the label are 0 to 4, those of the text 5 to 24, those of the sound 25 to 31.
TOGETHER = ConditionLayout.in_order(
    [ConditionPart.label(4), ConditionPart.text(3, 20, 1), ConditionPart.sound(2, 6)]
)


def parts_together(**changes):
    given = {
        "labels": torch.tensor([0, 4]),
        "text": torch.tensor([[0, 7, 19], [1, 1, 1]]),
        "sound": torch.tensor([[0, 5], [6, 6]]),
    }
    return given | changes


def test_parts_stand_one_after_the_other_in_ids_of_their_own():
    ids = condition_ids(TOGETHER, 2, **parts_together())
    assert ids.tolist() == [[0, 5, 12, 24, 25, 30], [4, 6, 6, 6, 31, 31]]
    assert ids.dtype == torch.int64
    turned = ConditionLayout.in_order([TOGETHER.part("sound"), TOGETHER.part("label")])
    ids = condition_ids(turned, 2, **parts_together(text=None))
    assert ids.tolist() == [[0, 5, 7], [6, 6, 11]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": torch.tensor([0, 5])}, "label 5 is outside 0 to 4"),
        ({"labels": torch.tensor([-1, 0])}, "label -1 is outside 0 to 4"),
        ({"text": torch.tensor([[0, 0, 0], [0, 20, 0]])}, "text 20 is outside 0 to 19"),
        ({"sound": torch.tensor([[0, 7], [0, 0]])}, "sound 7 is outside 0 to 6"),
        (
            {"sound": torch.tensor([[0, 0, 0]] * 2)},
            r"sound ids of shape \(2, 3\), expected \(2, 2\)",
        ),
        ({"text": torch.tensor([[0, 0]] * 2)}, r"text .* shape \(2, 2\), expected \(2, 3\)"),
        ({"text": torch.tensor([[0, 0, 0]])}, r"text .* shape \(1, 3\), expected \(2, 3\)"),
        ({"labels": torch.tensor([0])}, r"label ids of shape \(1,\), expected \(2,\)"),
        ({"labels": torch.tensor(0)}, r"label ids of shape \(\), expected \(2,\)"),
        ({"labels": torch.tensor([[0], [1]])}, r"label ids of shape \(2, 1\), expected \(2,\)"),
        ({"labels": torch.tensor([0.0, 0.5])}, "label ids of torch.float32, expected whole"),
        ({"sound": None}, "sound ids are missing, and the condition is label"),
        ({"text": None}, "text ids are missing, and the condition is label"),
        ({"labels": None}, "label ids are missing, and the condition is label"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes, says):
    with pytest.raises(ValueError, match=says):
        condition_ids(TOGETHER, 2, **parts_together(**changes))


def test_just_the_parts_that_are_dropped_become_null():
    labels, text = torch.arange(4), torch.tensor([[4, 5, 6]] * 4)
    condition = condition_ids(TOGETHER, 4, labels, torch.tensor([[3, 0]] * 4), text)
    before = condition.clone()
    dropped = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    assert drop_parts(TOGETHER, condition, dropped).tolist() == [
        [0, 9, 10, 11, 28, 25],
        [4, 9, 10, 11, 28, 25],
        [2, 6, 6, 6, 31, 31],
        [4, 6, 6, 6, 31, 31],
    ]
    assert torch.equal(condition, before)


def test_the_start_token_stays_what_it_is():
    layout = ConditionLayout.unconditional()
    dropped = torch.ones(2, 1, dtype=torch.bool)
    assert drop_parts(layout, condition_ids(layout, 2), dropped).tolist() == [[0], [0]]


def test_a_part_without_null_id_is_not_dropped():
    bare = ConditionPart(kind="sound", tokens=2, ids=6, offset=0)
    layout = ConditionLayout.in_order([ConditionPart.label(4), bare])
    condition = torch.tensor([[1, 5, 10], [2, 6, 7]])
    kept = torch.tensor([[True, False], [False, False]])
    assert drop_parts(layout, condition, kept).tolist() == [[4, 5, 10], [2, 6, 7]]
    with pytest.raises(ValueError, match="the sound has no null id"):
        drop_parts(layout, condition, torch.tensor([[False, False], [False, True]]))


def test_only_weights_of_linear_layers_decay():
    model = GPT(config())
    decayed, rest = decay_groups(model, 0.01)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    kinds = {re.sub(r"blocks\.\d\.", "", names[id(p)]) for p in decayed["params"]}
    assert kinds == {
        "attn.qkv.weight",
        "attn.proj.weight",
        "mlp.0.weight",
        "mlp.2.weight",
        "head.weight",
    }
    grouped = [id(p) for p in decayed["params"] + rest["params"]]
    assert sorted(grouped) == sorted(names)


def test_initial_weights_are_the_published_ones():
    model = GPT(config(width=64, codes=500))
    assert not model.pos_emb.any()
    for weight in (model.tok_emb.weight, model.head.weight, model.blocks[0].attn.qkv.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.head.bias is None
    assert model.head.weight is not model.tok_emb.weight
    assert not any(
        m.bias.any() for m in model.modules() if isinstance(m, nn.Linear) and m is not model.head
    )


def test_dropout_acts_in_training_only():
    model = GPT(config(dropout=0.5))
    condition, tokens = sequence(model.config)
    assert not torch.equal(model(condition, tokens), model(condition, tokens))
    model.eval()
    assert torch.equal(model(condition, tokens), model(condition, tokens))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (config(), [2.00608, 0.18017, 0.55689, -0.50343, -0.52889]),
        (LABELS, [2.00608, 1.00534, 0.20826, 1.16044, 1.7028]),
    ],
    ids=["start", "label"],
)
def test_numbers_of_the_proven_model(by_rule, of, expected):
    model = by_rule(GPT(of))
    with torch.no_grad():
        logits = model(*sequence(of))
    assert logits.flatten()[::101][:5].tolist() == pytest.approx(expected, abs=1e-4)
