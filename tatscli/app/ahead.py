"""What is seen to be wrong before anything slow: paths, folders to be written, files of weights.

Free of torch, which takes seconds to import: the command line asks here first. The use cases ask
too, for those who call them from Python.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from tatscli.app.listing import LISTING, read_listing
from tatscli.app.reporting import Reporter
from tatscli.app.run import RunFolder, continued, newest_gpt
from tatscli.config.encode import DecodeConfig, EncodeConfig
from tatscli.config.evaluate import FVDConfig, VQGANEvalConfig
from tatscli.config.files import read_layer
from tatscli.config.sample import (
    RealDataConfig,
    SampleLongConfig,
    SampleShortConfig,
)
from tatscli.config.train import AUTO, GPTTrainConfig, VQGANTrainConfig
from tatscli.core import weights
from tatscli.core.files import claim_empty
from tatscli.core.paths import find_checkpoint, model_name, remote_url, require_dataset
from tatscli.errors import ConfigError, DataError

GIVEN = "--context takes a video or a dataset"
"""What given videos can be, for hints."""
NAME_BYTES = 32
"""Of a text or a file, in the name of a folder."""


def check_training(config: VQGANTrainConfig | GPTTrainConfig, resume: Path | None) -> None:
    """Before a run: its folder, its data, and the files that it starts from.

    Raises:
        RunError: The folder is taken, or holds no run that could go on.
        ConfigError: The run that goes on was trained with other settings.
        DataError: The data is not there, or is no data.
        CheckpointError: A checkpoint, or a file of weights, is not there.
    """
    if run := continued(config, resume):
        RunFolder(run).require_saved()
        RunFolder(run).require_same(config)
        return
    RunFolder(config.folder).require_free(anew=resume == AUTO)
    if isinstance(config, VQGANTrainConfig):
        require_data(config.data.data)
        _require_checkpoints(config.train.init)
        if config.loss.perceptual_weight:
            weights.locate("vgg16")
        return
    if not remote_url(config.data.data):
        require_data(config.data.data)
    _require_checkpoints(config.train.init, config.vqgan, config.sound_vqgan)


def check_encoding(config: EncodeConfig) -> None:
    """Before videos are encoded.

    Raises:
        DataError: They are not there, or are no videos.
        CheckpointError: A VQGAN is not there.
    """
    require_data(config.data.data)
    _require_checkpoints(config.encode.vqgan, config.encode.sound_vqgan)


def check_decoding(config: DecodeConfig) -> None:
    """Before tokens are decoded.

    Raises:
        DataError: The folder for the videos is taken.
        CheckpointError: The VQGAN is not there.
    """
    claim_empty(config.decode.out, "choose another --out")
    _require_checkpoints(config.decode.vqgan)


def check_sampling(kind: str, config: SampleShortConfig | SampleLongConfig) -> None:
    """Before samples are drawn.

    Raises:
        CheckpointError: A GPT or VQGAN is not there.
        ConfigError: Real videos to compare with are not named.
        DataError: Given or real videos are not there, or the folder for the samples is taken.
    """
    sample = config.sample
    gpt = sample.gpt or newest_gpt_for(config)
    _require_checkpoints(gpt, sample.vqgan)
    if isinstance(config, SampleLongConfig):
        _require_checkpoints(config.window.infill_gpt)
    _require_checkpoints(config.condition.sound_vqgan)
    if config.given.context:
        require_given(config.given.context)
    if config.real.compute_fvd:
        check_comparison(config.real)
    free_folder(config, kind, gpt)


def newest_gpt_for(
    config: SampleShortConfig | SampleLongConfig, reporter: Reporter | None = None
) -> Path:
    """The newest GPT run that can sample what is asked for.

    Args:
        config: Settings of the sampling.
        reporter: Told about newer runs that are passed over.

    Raises:
        CheckpointError: There is none.
    """
    fills = isinstance(config, SampleLongConfig) and config.window.infill_gpt is not None
    label, needed = config.condition.label, config.condition.needed

    def lacks(run: RunFolder) -> str:
        try:
            model = run.model
        except ConfigError:
            return "has settings that cannot be read"
        if not model:  # imported by an older version: it is looked at once it is open
            return ""
        if model.get("infill") or model.get("n_unmasked"):
            return "fills in between frames that are given"
        if (model.get("latent_stride", 1) > 1) != fills:
            return "writes every latent frame" if fills else "writes key frames only"
        held = model.get("condition", "none").split("+")
        if missing := sorted(set(needed.values()) - set(held)):
            return f"is not conditioned on {', '.join(missing)}"
        if label and label not in run.record.get("classes", ()):
            return f"does not know class {label}"
        # Classes are taken in turn where nothing is asked for.
        if not (needed or config.given.context or {"none", "label"} & set(held)):
            return f"is conditioned on {', '.join(held)}, and nothing says what to show"
        return ""

    return newest_gpt(reporter=reporter, lacks=lacks)


def free_folder(config: SampleShortConfig | SampleLongConfig, kind: str, gpt: Path) -> Path:
    """The folder of samples, which must be new or empty.

    Args:
        config: What it is called, where it has a name, and what is asked for.
        kind: short or long.
        gpt: Run folder or checkpoint.

    Raises:
        DataError: It is neither.
    """
    sample, chosen = config.sample, config.filter
    cuts = f"k{chosen.top_k}-p{chosen.top_p:g}-t{chosen.temperature:g}-s{sample.seed}"
    name = sample.name or "-".join([model_name(gpt), kind, *_asked(config), cuts])
    folder = sample.out / name
    claim_empty(folder, "choose another --name, or remove it")
    return folder


def _asked(config: SampleShortConfig | SampleLongConfig) -> Iterator[str]:
    """What samples are asked to be, as parts of the name of their folder."""
    if isinstance(config, SampleLongConfig):
        window = config.window
        yield f"f{window.frames}" if window.frames else str(window.length)
        if window.temporal_sample_pos != 1:
            yield f"pos{window.temporal_sample_pos}"
    condition, given = config.condition, config.given
    yield from map(_short, filter(None, (condition.label, condition.text)))
    for file in filter(None, (condition.texts, condition.audio, given.context)):
        # Files of several classes often have the same names.
        yield _short("-".join([*file.parts[-2:-1], file.stem]))
    if given.context_frames:
        yield f"c{given.context_frames}"
    if condition.guidance != 1:
        yield f"g{condition.guidance:g}"


def _short(text: str) -> str:
    """A text as part of a file's name: letters, digits, - and _; what is cut has its checksum."""
    words = re.sub(r"[^\w-]+", "-", text).strip("-")
    kept = words.encode()[:NAME_BYTES].decode(errors="ignore").strip("-")
    if words and kept == words:
        return words
    checksum = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=3).hexdigest()
    return f"{kept}-{checksum}".strip("-")


def check_comparison(real: RealDataConfig) -> None:
    """Before samples are drawn that will be compared.

    Raises:
        ConfigError: Real videos are not named.
        DataError: They are not there.
    """
    if real.data is None:
        raise ConfigError("--compute-fvd needs real videos", "add --data DIR")
    if not real.data.exists():
        raise DataError(f"{real.data} does not exist", "give real videos with --data")


def check_sides(real: Path, fake: Path) -> None:
    """Before real videos are compared with samples.

    Raises:
        DataError: A side is not there.
    """
    for folder in (real, fake):
        if not folder.exists():
            raise DataError(f"{folder} does not exist", "give two folders of videos: REAL and FAKE")


def check_network(config: FVDConfig, *sides: Path) -> None:
    """Before features are computed, where a side can be nothing but videos.

    Raises:
        CheckpointError: The network is not there.
    """
    is_needed = config.fvd.features == "i3d" and any(side.suffix != ".npz" for side in sides)
    if is_needed and not config.fvd.weights:
        weights.locate("i3d")


def check_self_test(config: FVDConfig) -> None:
    """Before the network is tested, which no other can stand in for.

    Raises:
        CheckpointError: It is not there.
    """
    if config.fvd.features == "i3d" and not config.fvd.weights:
        weights.locate("i3d", None)


def check_reconstruction(checkpoint: Path, config: VQGANEvalConfig) -> None:
    """Before reconstructions are scored.

    Raises:
        CheckpointError: The VQGAN is not there.
        DataError: The videos are not there, or the folder for files is taken.
    """
    if config.eval.out is not None:
        claim_empty(config.eval.out, "choose another --out")
    _require_checkpoints(checkpoint)
    if config.data.data is not None:
        require_data(config.data.data)


def require_given(path: Path) -> None:
    """Make sure that given videos are there.

    Raises:
        DataError: They are not.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist", GIVEN)


def require_data(data: Path) -> None:
    """Make sure that a path is a dataset by its looks, and not what tats made of one.

    Raises:
        DataError: It is not there, or is a run or a folder of samples.
    """
    require_dataset(data)
    made = made_by_tats(data)
    if made == "run":
        run = RunFolder(data)
        kind, videos = run.record["kind"], _trained_on(run)
        hint = f"give what it was trained on, {videos}"
        if kind == "vqgan":
            hint += f"; 'tats encode --data {videos} --vqgan {data}' makes tokens of that"
        raise DataError(f"{data} is a run of tats {kind} train, not a dataset", hint)
    if made == "samples":
        raise DataError(
            f"{data} holds samples that tats sample wrote, not a dataset",
            f"give real videos; 'tats eval fvd REAL {data}' compares samples with them",
        )


def made_by_tats(folder: Path) -> Literal["", "run", "samples"]:
    """What a folder is, if it is the folder of a run or of samples."""
    if RunFolder(folder).record.get("kind") in ("vqgan", "gpt"):
        return "run"
    with suppress(DataError):  # a file of that name may be anything
        if (folder / LISTING).is_file() and read_listing(folder):
            return "samples"
    return ""


def _trained_on(run: RunFolder) -> str:
    try:
        return str(read_layer(run.config).values["data"]["data"])
    except (ConfigError, LookupError, TypeError):
        return "DIR"


def _require_checkpoints(*paths: Path | None) -> None:
    for path in filter(None, paths):
        find_checkpoint(path)
