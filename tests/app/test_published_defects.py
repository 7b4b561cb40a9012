"""What is true here where the published code, or a fork of it, is known to be wrong.

One test for each known defect, under its number in the list of them; a comment in it says what the
published code does, which would fail the test. Left out are numbers 24 and 25 (what the published
code lacks, and other code).

Letters: B clips, t h w latent grid.
"""

import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tiny_app import (
    CheapNetwork,
    Notes,
    encode_config,
    gpt_config,
    long_config,
    short_config,
    vqgan_config,
)
from torch import Tensor, nn

import tatscli
from tatscli.app import evaluate, sample
from tatscli.app.data import open_videos
from tatscli.app.encode import encode
from tatscli.app.evaluate import evaluate_fvd
from tatscli.app.reporting import Silent
from tatscli.app.sample import read_samples
from tatscli.app.sampler import Cuts
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.app.training_data import gpt_material
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import FVDConfig
from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.config.sample import FilterConfig
from tatscli.config.train import VQGANTrainConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core import weights
from tatscli.core.checkpoint import read_gpt, read_vqgan
from tatscli.core.data.index import build_index
from tatscli.core.data.tokens import TokenDataset, read_manifest
from tatscli.core.data.video import Frames, to_float, write_png, write_video
from tatscli.core.models import gpt as gpt_module
from tatscli.core.models.codebook import Codebook
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.models.gpt import GPT, KVCache, condition_ids
from tatscli.core.models.vqgan import VQGAN, Decoder, Encoder
from tatscli.core.sampling import generate
from tatscli.core.sampling.filters import TokenFilter, choose
from tatscli.core.sampling.generate import (
    Chances,
    generate_between,
    generate_long,
    generate_window,
)
from tatscli.core.training.losses import token_loss
from tatscli.errors import ConfigError, DataError

B, FRAME, CODES = 3, 4, 7
GREEDY = TokenFilter(temperature=0.0)
GAN = {"image_gan_weight": 1, "video_gan_weight": 1}
SMALL_JUDGES = {"disc_channels": 2, "disc_layers": 1}
PACKAGE = Path(tatscli.__file__).parent


def class_condition(gpt: GPT, classes: int, numbers: range) -> Tensor:
    """The classes in turn; the start token without any."""
    layout = gpt.config.condition
    labels = torch.tensor([i % classes for i in numbers]) if layout.part("label") else None
    return condition_ids(layout, len(numbers), labels)


def make_gpt(grid: tuple[int, int, int] = (3, 2, 2), classes: int = 0, **purpose: Any) -> GPT:
    """A small GPT with distinct logits."""
    layout = ConditionLayout.labels(classes) if classes else ConditionLayout.unconditional()
    config = GPTConfig(
        layers=2, heads=2, width=16, codes=CODES, grid=grid, condition=layout, block_size=32,
        **purpose,
    )  # fmt: skip
    gpt, generator = GPT(config).eval(), torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
        gpt.pos_emb.mul_(4)
    return gpt


def some_codes(frames: int) -> Tensor:
    return torch.randint(CODES, (B, frames, 2, 2), generator=torch.Generator().manual_seed(5))


def taught(gpt: GPT, condition: Tensor, codes: Tensor) -> Tensor:
    """The likeliest codes by the training forward on a finished sequence."""
    with torch.no_grad():
        return gpt(condition, codes)[..., gpt.config.condition.ids :].argmax(-1)


def filled(rows: list[list[float]], counts: list[float], **settings: Any) -> Codebook:
    """A codebook in training, of given codes and counts."""
    vectors, used = torch.tensor(rows), torch.tensor(counts)
    codebook = Codebook(len(rows), len(rows[0]), **settings).train()
    codebook.load_state_dict({"embeddings": vectors, "N": used, "z_avg": vectors * used[:, None]})
    return codebook


def latents(values: list[float]) -> Tensor:
    """Encoder outputs of width 1, (1, 1, n, 1, 1)."""
    return torch.tensor(values)[None, None, :, None, None]


def state(checkpoint: Path) -> dict[str, Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def steps(run: Path, metric: str) -> list[int]:
    """Steps at which a metric of a run was written."""
    rows = [row.split(",") for row in (run / "metrics.csv").read_text().splitlines()]
    return [int(step) for step, name, _ in rows if name == metric]


def grey(count: int, offset: int = 0) -> Frames:
    """Frames whose level is 10 times their number, and an offset."""
    levels = (10 * np.arange(count, dtype=np.uint8) + offset)[:, None, None, None]
    return np.ascontiguousarray(np.broadcast_to(levels, (count, 8, 8, 3)))


def levels(video: Tensor) -> list[int]:
    return [int(level) for level in (255 * (video[0, :, 0, 0] + 0.5)).round()]


def noise(frames: int, seed: int, height: int = 8, width: int = 8) -> Frames:
    return np.random.default_rng(seed).integers(0, 255, (frames, height, width, 3), np.uint8)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the passes of each network in training."""
    counted: Counter[str] = Counter()
    for kind in (Encoder, Decoder, PatchDiscriminator):

        def forward(
            self: nn.Module, x: Tensor, kind: Any = kind, original: Any = kind.forward
        ) -> Any:
            counted[kind.__name__] += self.training
            return original(self, x)

        monkeypatch.setattr(kind, "forward", forward)
    return counted


@pytest.mark.parametrize("how", ["resume", "init"])
def test_row_01_loaded_codes_are_bit_identical_until_their_first_update(
    vqgan_run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # Published: the first training step after loading draws all codes anew from its batch.
    met: list[dict[str, Tensor]] = []
    update = Codebook.update

    def watched(self: Codebook) -> None:
        met.append({name: value.clone() for name, value in self.state_dict().items()})
        update(self)

    monkeypatch.setattr(Codebook, "update", watched)
    run = tmp_path / "run"
    if how == "resume":
        shutil.copytree(vqgan_run, run)
        held = read_vqgan(run / "checkpoints" / "last.ckpt")
        train_vqgan(vqgan_config(data, run, train={"max_steps": 4}), resume=run)
    else:
        held = read_vqgan(vqgan_run)
        train_vqgan(vqgan_config(data, run, train={"max_steps": 1, "init": vqgan_run}))
    assert len(met) == 1
    for name, value in held.model.codebook.state_dict().items():
        assert torch.equal(met[0][name], value), name


@pytest.mark.parametrize("kind", ["vqgan", "gpt"])
def test_row_02_a_first_run_goes_on_from_its_last_checkpoint_and_nothing_is_renamed(
    data: Path, tokens: Path, tmp_path: Path, kind: str
) -> None:
    # Published: the first run is never found, and "latest" is the best one, renamed.
    train, config, source = {
        "vqgan": (train_vqgan, vqgan_config, data), "gpt": (train_gpt, gpt_config, tokens),
    }[kind]  # fmt: skip
    run = train(config(source, tmp_path / "run", train={"max_steps": 3})).run
    (run / "checkpoints" / "best.ckpt").write_bytes(b"cannot go on from this")
    before = {path for path in run.rglob("*") if "events" not in path.parts}
    result = train(config(source, run, train={"max_steps": 4}), resume=run)
    assert result.steps == 4
    assert steps(run, "train/l1" if kind == "vqgan" else "train/loss") == [0, 1, 2, 3]
    assert before <= set(run.rglob("*"))


@pytest.mark.parametrize(
    ("norm", "apart"),
    [({}, True), ({"norm_type": "group"}, True),
     ({"norm_type": "group", "group_norm_over_time": True}, False)],
)  # fmt: skip
def test_row_03_frames_far_apart_do_not_touch_each_other(norm: dict[str, Any], apart: bool) -> None:
    # Published: group norm over time by default, as in the last case.
    torch.manual_seed(0)
    config = VQGANConfig(
        embedding_dim=4, codes=16, hidden_channels=16, downsample=(2, 2, 2), **norm
    )
    model, video = VQGAN(config).eval(), torch.rand(1, 3, 24, 8, 8) - 0.5
    changed = torch.cat([video[:, :, :-1], -video[:, :, -1:]], 2)
    codes = torch.zeros(1, 24, 4, 4, dtype=torch.long)
    other = torch.cat([codes[:, :-1], codes[:, -1:] + 1], 1)
    with torch.no_grad():
        encoded = model.latents(video)[:, :, 0] - model.latents(changed)[:, :, 0]
    decoded = (model.decode(codes) - model.decode(other))[:, :, 0]
    assert (encoded.abs().max() == 0) == (decoded.abs().max() == 0) == apart


def test_row_04_infilling_draws_from_the_rows_of_training() -> None:
    # Published: the first token comes from the row of the last future one; positions are shifted.
    gpt = make_gpt((5, 2, 2), infill=True)
    condition = class_condition(gpt, 0, range(B))
    first, *_, last = some_codes(5).unbind(1)
    cache = KVCache(gpt, B)
    middle = generate_between(gpt, condition, first, last, Chances(0, range(B)), GREEDY)
    window = torch.cat([first[:, None], middle, last[:, None]], 1).flatten(1)
    with torch.no_grad():
        found = gpt.step_ends(condition, first.flatten(1), last.flatten(1), cache)
        rows = gpt(condition, window)
    torch.testing.assert_close(found, rows[:, FRAME])
    assert (found - rows[:, -1]).abs().max() > 0.5
    between = slice(FRAME, -FRAME)
    assert torch.equal(taught(gpt, condition, window)[:, between], window[:, between])
    assert len(middle.unique()) > 1


def test_row_05_infilling_does_not_learn_to_copy_what_it_is_given() -> None:
    # Published: the loss is over all frames, of which the given ones see their own tokens.
    gpt, codes = make_gpt((5, 2, 2), infill=True), some_codes(5).flatten(1)
    hidden = gpt.hidden(class_condition(gpt, 0, range(B)), codes)
    hidden.retain_grad()
    token_loss(hidden, gpt.head.weight, codes, gpt.config).backward()
    assert hidden.grad is not None
    learnt = hidden.grad.abs().amax((0, 2)).view(5, FRAME)
    assert learnt[[0, 4]].max() == 0
    assert learnt[1:4].min() > 0


def test_row_06_a_restarted_code_stays_and_without_restart_nothing_is_drawn() -> None:
    # Published: the next update flies it back, and every pass draws a permutation.
    rows, counts = [[0.0], [1.0], [500.0]], [1.0, 1.0, 0.001]
    codebook = filled(rows, counts, random_restart=True)
    codebook(latents([0.0, 1.0]))
    codebook.update()
    moved = codebook.embeddings[2].item()
    assert moved in (0.0, 1.0)
    codebook(latents([3.0 if moved == 0.0 else -2.0]))  # nearest to the other one
    codebook.update()
    assert codebook.embeddings[2].item() == pytest.approx(moved, abs=1e-5)
    without = filled(rows, counts)
    before = torch.get_rng_state()
    without(latents([0.0, 1.0]))
    without.update()
    assert torch.equal(torch.get_rng_state(), before)


def test_row_07_codes_move_once_an_optimiser_step(
    vqgan_run: Path, data: Path, tmp_path: Path
) -> None:
    # Published: once a pass, so twice a part of the batch.
    config = vqgan_config(
        data, tmp_path / "run", model=SMALL_JUDGES, loss=GAN | {"disc_start": 0},
        train={"max_steps": 1, "accumulate": 3, "init": vqgan_run},
    )  # fmt: skip
    run = train_vqgan(config).run
    start = read_vqgan(vqgan_run).model.codebook
    counts = state(run / "checkpoints" / "last.ckpt")["vqgan.codebook.N"]
    gained = counts - start.decay * start.N  # by each code, in hundredths: positions
    positions = 3 * 2 * 8
    assert gained.sum().item() == pytest.approx((1 - start.decay) * positions, rel=1e-3)
    assert gained.min() > -1e-6


def test_row_08_one_pass_a_part_and_none_of_discriminators_that_do_not_learn_yet(
    data: Path, tmp_path: Path, passes: Counter[str]
) -> None:
    # Published: two passes a part, and the discriminators judge all from the first step.
    def trained(name: str, max_steps: int, **loss: int) -> None:
        passes.clear()
        train = {"max_steps": max_steps, "accumulate": 3}
        train_vqgan(
            vqgan_config(data, tmp_path / name, model=SMALL_JUDGES, loss=GAN | loss, train=train)
        )

    trained("judged", 1, disc_start=0)
    assert passes["Encoder"] == passes["Decoder"] == 3
    assert passes["PatchDiscriminator"] > 0
    trained("early", 2, disc_start=4, disc_warmup=2)
    assert passes == {"Encoder": 6, "Decoder": 6}


def test_row_09_discriminators_have_learnt_before_they_are_felt(data: Path, tmp_path: Path) -> None:
    # Published: one gate for both.
    loss = GAN | {"disc_start": 2, "disc_warmup": 2}
    run = train_vqgan(vqgan_config(data, tmp_path / "run", model=SMALL_JUDGES, loss=loss)).run
    for judge in ("image", "video"):
        assert steps(run, f"train/disc_{judge}") == [0, 1, 2]
        assert steps(run, f"train/gan_{judge}") == [2]
    default = VQGANTrainConfig.model_validate({"data": {"data": data}}).loss
    assert default.disc_start >= default.disc_warmup > 0


def test_row_10_lpips_is_shown_frames_between_minus_one_and_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Published: between minus and plus one half.
    shapes = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256),
              (512, 256)] + 5 * [(512, 512)]  # fmt: skip
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    nothing = torch.zeros(1)
    network = {}
    for place, (out, into) in zip(places, shapes, strict=True):
        network[f"features.{place}.weight"] = nothing.expand(out, into, 3, 3)
        network[f"features.{place}.bias"] = nothing.expand(out)
    torch.save(network, tmp_path / "vgg16.pth")
    monkeypatch.setattr(weights, "locate", lambda name: tmp_path / "vgg16.pth")
    shown: list[Tensor] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d) and module.weight.shape == (64, 3, 3, 3):
            shown.append(inputs[0].detach())

    hook = nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        config = vqgan_config(data, tmp_path / "run", data={"resolution": 16},
                              loss={"perceptual_weight": 1}, train={"max_steps": 1})  # fmt: skip
        train_vqgan(config)
    finally:
        hook.remove()
    shift, scale = (
        torch.tensor(numbers).view(3, 1, 1)
        for numbers in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
    )
    # In pairs: a reconstruction, which may leave the range, and the frame it is compared with.
    pixels = torch.cat(shown[1::2]) * scale + shift
    assert -1.001 < pixels.min() < -0.8  # nearly black
    assert 0.6 < pixels.max() < 1.001


def test_row_11_every_start_can_be_drawn_and_a_video_as_long_as_a_clip_is_one(
    tmp_path: Path,
) -> None:
    # Published: the last start and frame are never drawn, an exact length fails, two videos merge.
    write_video(tmp_path / "train" / "exact.mkv", grey(16, 5), 8, lossless=True)
    write_video(tmp_path / "train" / "longer.mkv", grey(20), 8, lossless=True)
    write_video(tmp_path / "test" / "exact.mkv", grey(16), 8, lossless=True)
    clip = ClipConfig(resolution=8, sequence_length=16)
    clips = open_videos(tmp_path, clip, Silent(), strict=True).training(0, True)
    draws = [(slot, number) for slot in range(len(clips)) for number in range(60)]
    found = {clips.address(draw)[:2]: draw for draw in draws}
    shown = sorted(levels(clips[draw].video) for draw in found.values())
    exact = list(range(5, 165, 10))
    assert shown == sorted([exact, *(list(range(10 * s, 10 * s + 160, 10)) for s in range(5))])
    # The published file of the same videos gives the same clips.
    with h5py.File(tmp_path / "same.h5", "w") as file:
        file["train_data"] = np.concatenate([grey(16, 5), grey(20)])
        file["train_idx"] = np.array([0, 16])
        file["test_data"], file["test_idx"] = grey(16), np.array([0])
    stored = open_videos(tmp_path / "same.h5", clip, Silent(), strict=True).training(0, True)
    assert {stored.address(draw)[:2] for draw in draws} == found.keys()
    assert sorted(levels(stored[draw].video) for draw in found.values()) == shown


def test_row_12_frame_folders_have_splits_and_lengths_as_videos_have(tmp_path: Path) -> None:
    # Published: they are validated on training data, and their clips are longer by the stride.
    for split, offset in (("train", 0), ("test", 5)):
        for number, frame in enumerate(grey(12, offset)):
            write_png(tmp_path / "frames" / split / "a" / f"{number}.png", frame)
        video = tmp_path / "videos" / split / "a.mkv"
        write_video(video, grey(12, offset), 8, lossless=True)
    clip = ClipConfig(resolution=8, sequence_length=8, sample_every_n_frames=2)
    folders, videos = (
        open_videos(tmp_path / kind, clip, Silent(), strict=True) for kind in ("frames", "videos")
    )
    for split, offset in (("train", 0), ("val", 5)):
        one, other = folders.every(split, 1), videos.every(split, 1)
        assert len(one) == len(other) == 5
        for number in range(5):
            start = 10 * number + offset
            assert levels(one[number].video) == list(range(start, start + 80, 20))
            assert torch.equal(one[number].video, other[number].video)


def test_row_13_broken_files_are_named_changed_ones_read_again_and_classes_keep_their_ids(
    tmp_path: Path,
) -> None:
    # Published: errors are swallowed, for ever if all fail; the cache never ends; ids by split.
    root, filters = tmp_path / "data", list(warnings.filters)
    for name in ("train/a/0", "train/b/0", "train/c/0", "test/b/0", "test/c/0"):
        write_video(root / f"{name}.mkv", grey(12), 8, lossless=True)
    (root / "train" / "a" / "broken.mkv").write_text("no video")
    notes, clip = Notes(), ClipConfig(resolution=8, sequence_length=4)
    videos = open_videos(root, clip, notes)
    assert ["broken.mkv" in warning for warning in notes.warnings] == [True]
    assert [(e.path, e.label) for e in videos.val.entries] == [
        ("test/b/0.mkv", 1), ("test/c/0.mkv", 2),
    ]  # fmt: skip
    assert warnings.filters == filters
    write_video(root / "test" / "b" / "0.mkv", grey(9), 8, lossless=True)
    lengths = [len(entry.info.times) for entry in build_index(root).split("val")]
    assert lengths == [9, 12]
    for file in (root / "train").rglob("*.mkv"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="clips in a row cannot be decoded"):
        videos.training(0, False)[0, 0]
    with pytest.raises(DataError, match="no training video"):
        open_videos(root, clip, Notes())


def test_row_14_tokens_are_written_as_they_are_read_with_labels_and_vocabulary(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    # Published: nothing writes them, labels are left out, and the vocabulary is 16384 always.
    folder = encode(encode_config(data, tmp_path / "tokens", vqgan_run)).folder
    held = TokenDataset(folder, "train")
    kinds = [held.origin(number)[0].split("/")[1] for number in range(len(held))]
    assert [("circle", "square")[label] for label in held.labels] == kinds
    label = {"condition": "label"}
    run = train_gpt(gpt_config(folder, tmp_path / "run", model=label, train={"max_steps": 1})).run
    trained = read_gpt(run)
    assert (trained.model.config.codes, trained.classes) == (16, ("circle", "square"))
    with pytest.raises(ConfigError, match=r"--vocab-size 16384, .* has 16 codes"):
        train_gpt(gpt_config(folder, tmp_path / "no", model=label | {"vocab_size": 16384}))


def test_row_15_captions_of_any_dataset_are_a_condition(tokens: Path, tmp_path: Path) -> None:
    # Published: outside of one dataset, text needs arguments that nothing declares.
    config = gpt_config(tokens, tmp_path / "run", model={"condition": "text"})
    material = gpt_material(config, None, Silent())
    captions = {caption for some in read_manifest(tokens).captions["train"] for caption in some}
    assert material.text is not None
    assert {bool(material.text.encode(caption).unique().numel() > 3) for caption in captions} == {
        True
    }
    assert material.clips.train[0, 0].text.tolist() in [
        material.text.encode(caption).tolist() for caption in captions
    ]


def test_row_16_condition_ids_are_never_drawn_nor_shared_with_codes() -> None:
    # Published: they are drawn, and then taken for code 0.
    chosen_by = Cuts.of(FilterConfig()).chosen_by
    read: list[Tensor] = []
    for gpt in (make_gpt(classes=3), make_gpt((5, 2, 2), classes=3, infill=True)):
        condition, ids = class_condition(gpt, 3, range(B)), gpt.config.condition.ids
        with torch.no_grad():
            gpt.ln_f.bias.fill_(1.0)
            gpt.head.weight[ids + 3] = 50.0
            gpt.head.weight[:ids] = 100.0
            window = some_codes(gpt.config.grid[0]).flatten(1)
            assert (gpt(condition, window).argmax(-1) < ids).all()
        gpt.tok_emb.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        gpt(condition, window)
        assert read[-1][:, :1].max() < ids <= read[-1][:, 1:].min()
        chances = Chances(0, range(B))
        if gpt.config.infill:
            first, last = some_codes(2).unbind(1)
            codes = generate_between(gpt, condition, first, last, chances, chosen_by)
        else:
            codes = generate_long(gpt, condition, chances, chosen_by, length=5, context=1)
        assert (codes == 3).all()  # the likeliest code, and not 0 for an id of the condition


def test_row_17_a_sliding_window_sees_as_many_frames_as_are_asked_for() -> None:
    # Published: one by default, and the script for long videos has no other that works.
    gpt = make_gpt()
    condition = class_condition(gpt, 0, range(B))
    codes = generate_long(gpt, condition, Chances(0, range(B)), GREEDY, length=8, context=2)
    new, differs = slice(2 * FRAME, None), []
    for frame in range(2, 8):
        window = codes[:, frame - 2 : frame + 1].clone()
        drawn = window[:, 2].flatten(1)
        assert torch.equal(taught(gpt, condition, window.flatten(1))[:, new], drawn)
        window[:, 0] = (window[:, 0] + 1) % CODES
        differs.append(not torch.equal(taught(gpt, condition, window.flatten(1))[:, new], drawn))
    assert any(differs)


def test_row_18_checkpoints_hold_no_masks_and_one_cache_serves_any_length(
    gpt_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Published: a mask a layer is saved, and the cache is a list put together for every token.
    gpt = make_gpt((5, 2, 2), infill=True)
    assert list(gpt.state_dict()) == [name for name, _ in gpt.named_parameters()]
    saved = {k for k in state(gpt_run / "checkpoints" / "last.ckpt") if k.startswith("gpt.")}
    assert saved == {f"gpt.{name}" for name, _ in read_gpt(gpt_run).model.named_parameters()}
    places: set[int] = set()
    sizes: set[int] = set()

    class Watched(KVCache):
        def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
            super().write(layer, keys, values)
            held = [*self._keys, *self._values]
            places.update(part.untyped_storage().data_ptr() for part in held)
            sizes.update(part.untyped_storage().nbytes() for part in held)

    monkeypatch.setattr(gpt_module, "SEGMENT", 4)
    monkeypatch.setattr(generate, "KVCache", Watched)
    gpt = make_gpt()
    generate_long(
        gpt, class_condition(gpt, 0, range(B)), Chances(0, range(B)), GREEDY, length=9, context=2
    )
    assert len(places) == 2 * gpt.config.layers  # keys and values
    room = -(-gpt.config.positions // 4) * 4
    assert sizes == {B * room * gpt.config.width * 4}


def test_row_19_top_p_acts_without_top_k_and_temperature_acts(gpt_run: Path) -> None:
    # Published: top-p is ignored without top-k, and the temperature is 1.
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log().expand(20, 3)
    chance = torch.arange(20) / 20
    assert choose(logits, chance, TokenFilter()).unique().tolist() == [0, 1, 2]
    assert choose(logits, chance, TokenFilter(top_p=0.7)).unique().tolist() == [0, 1]

    def sampled(**cuts: float) -> Tensor:
        settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | cuts
        return tatscli.sample_short(gpt_run, 3, device="cpu", **settings)

    greedy = sampled(temperature=0.0)
    assert not torch.equal(sampled(), greedy)
    assert torch.equal(sampled(top_p=1e-6), greedy)
    assert torch.equal(sampled(temperature=1e-6), greedy)


def test_row_20_fvd_takes_any_size_length_and_batch_and_samples_any_path(
    gpt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Published: 16 frames of 128 x 128 in batches of 16, shuffled; names need seven folders.
    monkeypatch.setattr(evaluate, "Network", CheapNetwork)
    for number in range(5):
        for side in ("real", "fake"):
            video = noise(11, number + 10 * (side == "real"), 20, 26)
            write_video(tmp_path / side / f"{number}.mkv", video, 8, lossless=True)

    def distance(batch_size: int, frames: int) -> float:
        options = {"features": "random", "frames": frames, "batch_size": batch_size,
                   "cache": False}  # fmt: skip
        config = FVDConfig.model_validate({"fvd": options, "compute": {"device": "cpu"}})
        return evaluate_fvd(tmp_path / "real", tmp_path / "fake", config).value

    for frames in (9, 11):
        values = [distance(batch_size, frames) for batch_size in (1, 7, 7)]
        assert values[0] > 0
        assert values == pytest.approx(values[:1] * 3, rel=1e-6)
    monkeypatch.chdir(tmp_path)
    shutil.copy(gpt_run / "checkpoints" / "last.ckpt", "gpt.ckpt")
    made = {"samples": 5, "batch_size": 3}
    result = sample.long(long_config(Path("gpt.ckpt"), Path("out"), sample=made))
    assert result.folder.parent == Path("out")
    assert len(list(result.folder.glob("sample-*.mp4"))) == result.samples == 5


def test_row_21_nothing_needs_cuda_or_what_libraries_no_longer_have(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Published: .cuda() in the training forward, and calls that current libraries lack.
    gone = (".cuda(", "ANTIALIAS", "distributed_backend", "cloud_io", 'is not "')
    found = [
        (file.name, text)
        for file in PACKAGE.rglob("*.py")
        for text in gone
        if text in file.read_text(encoding="utf-8")
    ]
    assert not found

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked for CUDA")

    for kind in (Tensor, nn.Module):
        monkeypatch.setattr(kind, "cuda", refuse)
    once = {"max_steps": 1}
    loss = GAN | {"disc_start": 0}
    vqgan = train_vqgan(
        vqgan_config(data, tmp_path / "v", model=SMALL_JUDGES, loss=loss, train=once)
    ).run
    gpt = train_gpt(gpt_config(data, tmp_path / "g", vqgan, train=once)).run
    assert tatscli.sample_long(gpt, 3, 1, device="cpu").shape == (1, 3, 6, 8, 8)


@pytest.mark.parametrize("padding", ["replicate", "constant", "reflect", "circular"])
@pytest.mark.parametrize(("norm", "hidden"), [("batch", 1), ("batch", 5), ("group", 48)])
def test_row_22_every_width_norm_and_padding_that_is_taken_runs(
    norm: str, hidden: int, padding: str
) -> None:
    # Published: a residual block that changes its width crashes, as do groups that do not divide.
    config = VQGANConfig.model_validate(
        {"embedding_dim": 3, "codes": 5, "hidden_channels": hidden, "downsample": (1, 2, 4),
         "norm_type": norm, "padding_type": padding}
    )  # fmt: skip
    model = VQGAN(config).train()
    assert model(torch.rand(2, 3, 4, 8, 8) - 0.5).video.shape == (2, 3, 4, 8, 8)
    padded = {name for name, m in model.named_modules()
              if getattr(m, "padding_type", "replicate") != "replicate"}  # fmt: skip
    # What the numbers of published checkpoints need: these, and no others.
    reached = {"encoder.conv_first", "pre_vq_conv"}
    reached |= {f"encoder.conv_blocks.{number}.down" for number in range(2)}
    assert padded == (set() if padding == "replicate" else reached)
    with pytest.raises(ValueError, match="multiples of 16, got 24"):
        VQGANConfig(norm_type="group", hidden_channels=24)


def test_row_23_prediction_starts_as_training_and_sees_nothing_of_the_future(
    gpt_run: Path, tmp_path: Path
) -> None:
    # A fork: no condition token before the prompt, which is cut from codes of the whole clip.
    gpt = make_gpt(classes=2)
    condition = class_condition(gpt, 2, range(B))
    codes = generate_window(
        gpt, condition, Chances(0, range(B)), GREEDY, given=some_codes(1)
    ).flatten(1)
    assert torch.equal(taught(gpt, condition, codes)[:, FRAME:], codes[:, FRAME:])

    # Codes that are latents of the video, so that clips differ in codes.
    one, other = noise(12, 0), noise(12, 1)
    other[:2] = one[:2]
    checkpoint = torch.load(gpt_run / "checkpoints" / "last.ckpt", weights_only=True)
    model, clips = read_gpt(gpt_run).vqgan.model, [to_float(video)[None] for video in (one, other)]
    with torch.no_grad():
        vectors = model.latents(clips[0]).flatten(2)[0].T[:16].contiguous()
    checkpoint["state_dict"]["vqgan.codebook.embeddings"] = vectors
    torch.save(checkpoint, tmp_path / "gpt.ckpt")
    model = read_gpt(tmp_path / "gpt.ckpt").vqgan.model
    assert not torch.equal(*(model.encode(clip)[:, :1] for clip in clips))

    def predicted(name: str, video: Frames) -> Tensor:
        write_video(tmp_path / f"{name}.mkv", video, 8, lossless=True)
        config = short_config(
            tmp_path / "gpt.ckpt", tmp_path, sample={"name": name, "samples": 2, "lossless": True},
            given={"context": tmp_path / f"{name}.mkv", "context_frames": 2},
        )  # fmt: skip
        result = sample.short(config)
        assert (result.folder, result.samples) == (tmp_path / name, 2)
        return read_samples(result.folder)[0]

    assert torch.equal(predicted("one", one), predicted("other", other))
    assert not torch.equal(predicted("third", noise(12, 2)), predicted("again", one))
