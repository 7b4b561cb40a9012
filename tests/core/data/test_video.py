import os
import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from stamped import encode, numbers, stamped

from tatscli.core.data.video import (
    VideoInfo,
    probe,
    read_frames,
    tile,
    to_float,
    to_uint8,
    video_writer,
    write_png,
    write_video,
)
from tatscli.errors import DataError

GOPS = {
    "one key frame": {"g": "250", "bf": "3"},
    "key frame each 12": {"g": "12", "bf": "2"},
    "open groups": {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"},
    "key frame each 2": {"g": "2", "bf": "1", "x264-params": "b-adapt=0"},
}


@pytest.mark.parametrize("options", GOPS.values(), ids=GOPS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_any_frame_is_the_right_one_behind_any_key_frame(
    tmp_path: Path, suffix: str, options: dict[str, str]
) -> None:
    path = encode(tmp_path / f"a{suffix}", stamped(60), options=options)
    info = probe(path)
    assert len(info.times) == 60
    for first in range(0, 56, 5):
        wanted = list(range(first, first + 5))
        assert numbers(read_frames(path, info, wanted)) == wanted


@pytest.mark.parametrize("frames_between", ["0", "2"])
def test_frames_of_avi_files_are_found_by_counting(tmp_path: Path, frames_between: str) -> None:
    options = {"g": "12", "bf": frames_between, "b": "2M"}
    path = encode(tmp_path / "a.avi", stamped(50), codec="mpeg4", options=options)
    info = probe(path)
    assert (len(info.times), info.ordered) == (50, True)
    for first in (0, 7, 12, 23, 24, 40):
        wanted = list(range(first, first + 8))
        assert numbers(read_frames(path, info, wanted)) == wanted


def test_uneven_times_are_exact_and_need_not_start_at_zero(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).integers(1, 20, 40)
    stamps = (300 + np.cumsum(gaps)).tolist()
    path = encode(tmp_path / "a.mkv", stamped(40), stamps=stamps, options={"bf": "2", "g": "10"})
    info = probe(path)
    np.testing.assert_allclose(info.times - info.times[0], (np.array(stamps) - stamps[0]) / 100)
    assert info.times[0] > 1
    assert numbers(read_frames(path, info, [33, 5, 5, 20])) == [33, 5, 5, 20]
    assert info.rate == pytest.approx(39 / (info.times[-1] - info.times[0]))


def test_the_rate_of_even_times_is_the_one_that_was_written(tmp_path: Path) -> None:
    # 11 / (11 / 15) is 15.000000000000002.
    write_video(tmp_path / "a.mp4", np.zeros((12, 16, 16, 3), np.uint8), 15)
    assert probe(tmp_path / "a.mp4").rate == 15


def test_a_gif_has_the_frames_that_were_put_into_it(tmp_path: Path) -> None:
    # Delays are in 1/100 s: at a constant rate that fits them, 16 frames would become 128.
    first, *others = map(Image.fromarray, stamped(16))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=330)
    info = probe(tmp_path / "a.gif")
    assert (len(info.times), info.is_steady, info.is_lossless) == (16, True, False)
    assert info.rate == pytest.approx(1 / 0.33)
    assert numbers(read_frames(tmp_path / "a.gif", info, range(16))) == list(range(16))


def test_hidden_frames_of_vp8_are_not_counted(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.webm", stamped(20), codec="libvpx")
    with av.open(str(source)) as container, av.open(str(tmp_path / "b.webm"), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if packet.size:
                content = bytearray(bytes(packet))
                if number == 10:
                    content[0] &= ~(1 << 4)  # not to be shown
                changed = av.Packet(bytes(content))
                changed.pts, changed.dts = packet.pts, packet.dts
                changed.time_base, changed.stream = packet.time_base, stream
                changed.is_keyframe = packet.is_keyframe
                copy.mux(changed)
    info = probe(tmp_path / "b.webm")
    assert len(info.times) == 19
    assert numbers(read_frames(tmp_path / "b.webm", info, [9, 10, 18])) == [9, 11, 19]


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_is_applied(tmp_path: Path, rotation: int) -> None:
    upright = np.zeros((3, 48, 80, 3), np.uint8)
    upright[:, :20, :30] = (250, 10, 10)
    stored = np.ascontiguousarray(np.rot90(upright, -rotation // 90, axes=(1, 2)))
    path = encode(tmp_path / "a.mp4", stored, rotation=rotation)
    info = probe(path)
    assert (info.width, info.height) == (80, 48)
    frames = read_frames(path, info, [0, 2])
    assert frames.shape == (2, 48, 80, 3)
    assert np.abs(frames.astype(int) - upright[:2]).mean() < 6


def test_sample_aspect_ratio_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 40, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 10)
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 40, 3), np.uint8), "rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(path)
    assert (info.width, info.height) == (64, 64)


def test_sound_and_covers_do_not_disturb(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", stamped(10), audio=True)
    info = probe(path)
    assert numbers(read_frames(path, info, [9])) == [9]
    assert info.sound
    assert not probe(encode(tmp_path / "b.mp4", stamped(1))).sound


@pytest.mark.parametrize("size", [16, 33, 64])
def test_the_shorter_side_is_scaled_and_the_centre_kept(tmp_path: Path, size: int) -> None:
    frames = np.zeros((2, 48, 97, 3), np.uint8)
    frames[:, :, :24] = (255, 0, 0)  # cut off
    frames[:, :, 73:] = (0, 0, 255)  # cut off
    frames[:, 24:] += np.array([0, 200, 0], np.uint8)
    write_video(tmp_path / "a.mkv", frames, 8, lossless=True)
    info = probe(tmp_path / "a.mkv")
    square = read_frames(tmp_path / "a.mkv", info, [0], size)
    assert square.shape == (1, size, size, 3)
    inner = square[0, :, 2:-2]
    assert inner[..., [0, 2]].max() < 12
    assert inner[: size // 2 - 2, :, 1].max() < 12
    assert inner[-size // 2 + 2 :, :, 1].min() > 188


def test_lossless_videos_give_every_bit_back(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 33, 47, 3), np.uint8)
    write_video(tmp_path / "a.mkv", frames, Fraction(30000, 1001), lossless=True)
    info = probe(tmp_path / "a.mkv")
    assert np.array_equal(read_frames(tmp_path / "a.mkv", info, range(5)), frames)


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("mpeg4", "mp4"), ("vp9", "webm")])
def test_written_videos_keep_colours_rate_and_tags(tmp_path: Path, codec: str, suffix: str) -> None:
    colours = np.array([(230, 40, 40), (40, 200, 60), (50, 60, 240), (128, 128, 128)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (4, 63, 65, 3))
    path = tmp_path / f"a.{suffix}"
    write_video(path, frames, 29.97, codec=codec, metadata={"comment": "seed 3"})  # type: ignore[arg-type]
    info = probe(path)
    assert (info.width, info.height) == (66, 64)
    assert info.rate == pytest.approx(29.97, rel=0.01)
    assert np.abs(read_frames(path, info, range(4)).astype(int)[:, :63, :65] - frames).max() <= 8
    with av.open(str(path)) as container:
        tags = {name.lower(): value for name, value in container.metadata.items()}
    assert tags["comment"] == "seed 3"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_mp4_files_are_made_for_players(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", stamped(5), 8)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("lossless", [False, True])
def test_frames_written_in_pieces_are_the_video_of_all_at_once(
    tmp_path: Path, lossless: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 33, 47, 3), np.uint8)
    tags = {"comment": "seed 3"}
    whole, pieces = tmp_path / "whole.mkv", tmp_path / "pieces.mkv"
    write_video(whole, noise, 29.97, lossless=lossless, metadata=tags)
    with video_writer(pieces, 29.97, lossless=lossless, metadata=tags) as write:
        for first, stop in [(0, 1), (1, 8), (8, 12)]:
            write(noise[first:stop])
            assert not pieces.exists()
    info = probe(pieces)
    assert np.array_equal(info.times, probe(whole).times)
    frames = [read_frames(path, info, range(12)) for path in (pieces, whole)]
    assert np.array_equal(*frames)
    assert lossless == np.array_equal(frames[0][:, :33, :47], noise)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces.mkv", "whole.mkv"]


@pytest.mark.parametrize("after", [0, 5])
def test_a_video_that_is_given_up_leaves_the_old_file(tmp_path: Path, after: int) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), video_writer(path, 8) as write:
        for number in range(after):
            write(stamped(number + 1))
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_text() == "old"


def test_a_writer_refuses_what_is_no_video(tmp_path: Path) -> None:
    for wrong in (stamped(0), stamped(2)[0], stamped(2).astype(np.int32), stamped(2)[..., :1]):
        with pytest.raises(ValueError, match="frames"), video_writer(tmp_path / "a", 8) as write:
            write(wrong)
    with pytest.raises(ValueError, match="in a video of"), video_writer(tmp_path / "a", 8) as write:
        write(stamped(1))
        write(stamped(1, side=32))
    with pytest.raises(ValueError, match="without frames"), video_writer(tmp_path / "a", 8):
        pass
    with pytest.raises(ValueError, match="0 frames per"), video_writer(tmp_path / "a", 0):
        pass
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="a.mp4 cannot be written"):
        write_video(tmp_path / "file" / "a.mp4", stamped(2), 8)
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(DataError, match="a.mp4 cannot be written"):
        write_video(tmp_path / "a.mp4", stamped(2), 8)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "a.mp4"}


def test_a_full_disk_is_an_error_with_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DataError, match=r"a\.mkv cannot be written"):
            write_video(tmp_path / "a.mkv", noise, 8, lossless=True)
        with pytest.raises(DataError, match=r"a\.png cannot be written"):
            write_png(tmp_path / "a.png", noise[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_bad_files_are_named_with_the_cause(tmp_path: Path) -> None:
    good = encode(tmp_path / "good.mp4", stamped(20)).read_bytes()
    contents = {
        "empty": b"",
        "text": b"not a video\n" * 50,
        "truncated": good[: len(good) // 2],
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.mp4: ."):
            probe(path)
    with pytest.raises(DataError, match=r"nothing.mp4: No such file"):
        probe(tmp_path / "nothing.mp4")


def test_a_name_is_no_pattern(tmp_path: Path) -> None:
    for name in ("1", "2", "%d"):
        write_png(tmp_path / f"{name}.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(DataError, match=r"%d\.png: numbered images, not a video"):
        probe(tmp_path / "%d.png")
    assert len(probe(tmp_path / "1.png").times) == 1


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="not a regular file"):
        probe(tmp_path / "a.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_garbled_files_raise_nothing_but_data_errors(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    good = encode(tmp_path / f"a{suffix}", stamped(20), codec=codec).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"b{suffix}"
    failed = 0
    for _ in range(40):
        content = np.frombuffer(good, np.uint8).copy()
        places = rng.integers(0, len(content), rng.integers(1, 200))
        content[places] = rng.integers(0, 256, len(places))
        path.write_bytes(content.tobytes())
        try:
            info = probe(path)
            frames = read_frames(path, info, [0, len(info.times) - 1], 16)
            assert frames.shape == (2, 16, 16, 3)
        except DataError as error:
            failed += 1
            assert str(path) in error.message
    assert failed > 5


def test_a_file_with_sound_only_has_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        silence.rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(DataError, match="no video"):
        probe(path)


def test_a_file_cut_after_its_index_fails_only_where_it_is_cut(tmp_path: Path) -> None:
    write_video(
        tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8), 8
    )
    info = probe(tmp_path / "a.mp4")
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    assert read_frames(tmp_path / "a.mp4", info, [0, 1]).shape[0] == 2
    with pytest.raises(DataError, match=r"a.mp4: .*7\.\d\d s"):
        read_frames(tmp_path / "a.mp4", info, [58, 59])


def test_frame_folders_are_read_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_png(tmp_path / f"frame{number}.png", np.full((20, 30, 3), number, np.uint8))
    (tmp_path / ".hidden.png").write_bytes(b"")
    info = probe(tmp_path)
    assert (len(info.times), info.width, info.height, info.rate) == (3, 30, 20, 25.0)
    assert read_frames(tmp_path, info, [0, 1, 2])[:, 0, 0, 0].tolist() == [1, 2, 10]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("size", [None, 12])
def test_images_of_any_kind_become_rgb(tmp_path: Path, mode: str, size: int | None) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((16, 16), 65535, np.uint16))
    else:
        image = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    image.save(tmp_path / "0.png")
    frames = read_frames(tmp_path, probe(tmp_path), [0], size)
    assert frames.shape == (1, size or 16, size or 16, 3)
    assert frames.min() >= 254


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for number in range(3):
        write_png(tmp_path / f"{number}.png", noise)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:900])
    info = probe(tmp_path)
    read_frames(tmp_path, info, [0, 2])
    with pytest.raises(DataError, match=r"1\.png"):
        read_frames(tmp_path, info, [0, 1])


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_an_animation_is_not_taken_for_one_image(tmp_path: Path, kind: str) -> None:
    first, *others = map(Image.fromarray, stamped(3))
    for name in ("still", "moves"):
        more = {"save_all": True, "append_images": others} if name == "moves" else {}
        (tmp_path / name).mkdir()
        first.save(tmp_path / name / f"0.{kind}", **more)
    info = probe(tmp_path / "still")
    assert len(info.times) == 1
    read_frames(tmp_path / "still", info, [0])
    with pytest.raises(
        DataError, match=rf"moves/0\.{kind}: an animation.* make a video file of it"
    ):
        probe(tmp_path / "moves")


def test_of_several_pictures_in_a_jpeg_the_first_is_taken(tmp_path: Path) -> None:
    first, *others = map(Image.fromarray, stamped(3))
    first.save(tmp_path / "0.jpg", format="MPO", save_all=True, append_images=others)
    assert numbers(read_frames(tmp_path, probe(tmp_path), [0])) == [0]


def test_images_of_another_size_are_an_error(tmp_path: Path) -> None:
    write_png(tmp_path / "0.png", np.zeros((20, 30, 3), np.uint8))
    write_png(tmp_path / "1.png", np.zeros((30, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"1\.png: 20x30 pixels.* 30x20"):
        read_frames(tmp_path, probe(tmp_path), [1])


def test_all_256_levels_survive_the_way_to_floats_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    video = to_float(levels)
    assert (video.shape, video.dtype) == ((3, 1, 16, 16), torch.float32)
    assert (video.min().item(), video.max().item()) == (-0.5, 0.5)
    assert np.array_equal(to_uint8(video), levels)
    assert to_uint8(torch.tensor([-9.0, 9.0, 0.0]).reshape(3, 1, 1, 1)).ravel().tolist() == [
        0,
        255,
        128,
    ]


def test_a_batch_keeps_its_leading_axes() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3, 3), np.uint8)
    assert to_float(frames).shape == (2, 3, 5, 4, 3)
    assert np.array_equal(to_uint8(to_float(frames)), frames)


def test_tiles_lie_in_rows_with_black_gaps() -> None:
    clips = [np.full((2, 4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
    grid = tile(clips, columns=2, gap=1)
    assert grid.shape == (2, 9, 13, 3)
    assert grid[0, 0, [0, 6, 7], 0].tolist() == [10, 0, 20]
    assert grid[1, 8, [0, 12], 0].tolist() == [30, 0]
    assert tile(clips[:1]).shape == (2, 4, 6, 3)


def test_a_frame_the_file_does_not_list_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", stamped(3), 8, lossless=True)
    info: VideoInfo = probe(tmp_path / "a.mkv")
    with pytest.raises(ValueError, match="3 frames"):
        read_frames(tmp_path / "a.mkv", info, [3])
