"""`birdtpu.data.audio` on real files: odd but valid, broken, lying, and mutated at random."""

import csv
import importlib.util
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from birdtpu.data import audio, containers

PROJECT = Path(__file__).resolve().parents[2]
SHARED = PROJECT.parent / "shared" / "audio"
RATE = 32000


def _rows(table: str) -> list[dict[str, str]]:
    if not (SHARED / table).exists():
        return []
    with (SHARED / table).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _expected(row: dict[str, str]) -> tuple[int, int, float]:
    if row["sample_rate"]:
        return int(row["sample_rate"]), int(row["channels"]), float(row["duration_s"])
    rate, channels, seconds = re.search(r"aac,(\d+),(\d+) ([\d.]+)", row["format"]).groups()
    return int(rate), int(channels), float(seconds)


def _mutations():
    spec = importlib.util.spec_from_file_location("mutations", Path(__file__).with_name("mutations.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tone(tmp_path):
    """Two seconds of a chord with noise, at 44.1 kHz; returns the samples and a writer of files."""
    time = np.arange(88200) / 44100
    rng = np.random.default_rng(0)
    samples = (0.3 * np.sin(6000 * time) + 0.2 * np.sin(21000 * time)).astype(np.float32)
    samples += 0.01 * rng.standard_normal(len(samples)).astype(np.float32)

    def write(name: str, values: np.ndarray = samples, rate: int = 44100, **options) -> Path:
        soundfile.write(tmp_path / name, values, rate, **options)
        return tmp_path / name

    return samples, write


@pytest.mark.parametrize("row", _rows("formats.csv"), ids=lambda row: row["filename"])
def test_formats_decode_to_duration_and_rate(row):
    path = SHARED / row["filename"]
    rate, channels, seconds = _expected(row)
    if path.suffix == ".m4a":
        pytest.importorskip("av")
    info = audio.probe(path)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.duration_seconds == pytest.approx(seconds, abs=0.001)
    if seconds == 0.0:
        with pytest.raises(audio.AudioError, match="too short") as caught:
            audio.read(path, sample_rate=RATE)
        assert caught.value.reason == "too short"
        return
    samples = audio.read(path, sample_rate=RATE)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) == math.floor(info.frames * RATE / rate + 0.5)
    assert np.isfinite(samples).all() and np.ptp(samples) > 0
    assert np.array_equal(np.concatenate(list(audio.stream(path, sample_rate=RATE))), samples)


@pytest.mark.parametrize("name", ["mp3_named_wav.wav", "mp3_vbr_44100_stereo.mp3", "opus_in_ogg.ogg", "caf_32000.caf",
                                  "aac_44100.m4a", "flac_16000.flac", "w64_48000.w64", "ulaw_8000.wav"])  # fmt: skip
def test_formats_hold_the_same_sound(shared_audio, name):
    if name.endswith(".m4a"):
        pytest.importorskip("av")
    reference = audio.read(shared_audio / "formats" / "pcm_s16_48000.wav", sample_rate=8000)
    samples = audio.read(shared_audio / "formats" / name, sample_rate=8000)
    assert len(samples) == len(reference)
    assert np.corrcoef(reference, samples)[0, 1] > 0.95


BAD = {
    "zero_bytes.wav": "empty file",
    "riff_only_12.wav": "malformed",
    "truncated_odd_byte.wav": "cut short.*last sample is incomplete",
    "data_size_zero.wav": "claims no bytes",
    "channels_zero.wav": "malformed",
    "sample_rate_absurd.wav": "malformed",
    "flipped_bytes.flac": "",  # the flipped bytes lie in the padding before the audio
    "header_only.ogg": "malformed",
    "garbage_head.mp3": "before the first MP3 frame",
    "random_bytes.mp3": "not audio",
    "html_error.mp3": "not audio",
    "png_named_ogg.ogg": "not audio",
    "no_samples.wav": "no samples",
    "constant_5s.wav": "constant",
    "inf.wav": "not finite",
    "denormal.wav": "constant",
}
SAVED_SECONDS = {"truncated_odd_byte.wav": 1.4995, "data_size_zero.wav": 3.0, "garbage_head.mp3": 3.0}


@pytest.mark.parametrize("name", [Path(row["filename"]).name for row in _rows("bad.csv")])
def test_bad_files_are_named_or_saved(name):
    path = SHARED / "bad" / name
    if name in SAVED_SECONDS:
        with pytest.warns(audio.AudioWarning, match=BAD[name]) as caught:
            samples = audio.read(path, sample_rate=RATE)
        assert len(caught) == 1 and str(path) in str(caught[0].message)
        assert len(samples) / RATE == pytest.approx(SAVED_SECONDS[name], abs=1e-3)
    elif BAD[name]:
        with pytest.raises(audio.AudioError) as error:
            audio.read(path, sample_rate=RATE)
        assert error.value.reason == BAD[name] and error.value.path == str(path)
        assert str(error.value).startswith(f"{path}: {BAD[name]}") and "\n" not in str(error.value)
    else:
        whole = audio.read(SHARED / "formats" / "flac_16000.flac", sample_rate=RATE)
        assert np.array_equal(audio.read(path, sample_rate=RATE), whole)


def test_every_bad_file_has_an_expectation(shared_audio):
    assert {path.name for path in (shared_audio / "bad").iterdir()} == set(BAD)


@pytest.mark.parametrize("rate", [32000, 44100, 22050, 48000])
@pytest.mark.parametrize("block", [1000, 4097, 1 << 16])
def test_any_block_gives_what_soundfile_and_soxr_give_at_once(tone, monkeypatch, rate, block):
    _, write = tone
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", block)
    for name in ("a.wav", "a.mp3", "a.flac", "a.ogg"):
        path = write(name)
        samples, own_rate = soundfile.read(path, dtype="float32")
        expected = soxr.resample(samples, own_rate, rate, quality="HQ") if rate != own_rate else samples
        assert np.array_equal(audio.read(path, sample_rate=rate), expected)
        assert np.array_equal(np.concatenate(list(audio.stream(path, sample_rate=rate))), expected)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.w64"])
@pytest.mark.parametrize("rate", [32000, 44100, 31999])
def test_a_part_is_a_slice_of_the_whole(tone, name, rate):
    _, write = tone
    path = write(name)
    whole = audio.read(path, sample_rate=rate)
    for start, seconds in [(0.0, 0.5), (0.3, 0.25), (1.234, 0.5), (1.9, 5.0), (1.0, None), (0.7, 0.0)]:
        first = round(start * rate)
        last = None if seconds is None else first + round(seconds * rate)
        part = audio.read(path, sample_rate=rate, start_seconds=start, duration_seconds=seconds)
        assert part.shape == whole[first:last].shape
        assert np.abs(part - whole[first:last]).max(initial=0.0) < 1e-6


def test_a_part_is_found_by_seeking(tone, monkeypatch):
    samples, write = tone
    path = write("long.flac", np.tile(samples, 10))
    decoded = []
    blocks = audio._LibsndfileSource.blocks
    monkeypatch.setattr(
        audio._LibsndfileSource,
        "blocks",
        lambda self, size: (decoded.append(len(block)) or block for block in blocks(self, size)),
    )
    audio.read(path, sample_rate=RATE, start_seconds=17.0, duration_seconds=1.0)
    assert sum(decoded) < 2 * 44100


def test_a_part_behind_the_end_is_too_short(tone):
    _, write = tone
    with pytest.raises(audio.AudioError, match=r"ends before 2\.5 s"):
        audio.read(write("a.wav"), sample_rate=RATE, start_seconds=2.5, duration_seconds=1.0)


def test_a_silent_part_of_a_good_file_is_given(tone):
    samples, write = tone
    path = write("pause.wav", np.concatenate([samples, np.zeros(44100, np.float32)]))
    assert not audio.read(path, sample_rate=44100, start_seconds=2.2, duration_seconds=0.5).any()


@pytest.mark.parametrize("rate", [44100, 11024, 48000, 96000])
def test_samples_do_not_drift(tmp_path, rate):
    clicks = np.zeros(40 * rate, np.float32)
    clicks[rate // 2 :: rate] = 1.0
    soundfile.write(tmp_path / "clicks.wav", clicks, rate)
    samples = audio.read(tmp_path / "clicks.wav", sample_rate=RATE)
    assert len(samples) == 40 * RATE
    assert np.array_equal(samples.reshape(40, RATE).argmax(axis=1), np.full(40, RATE // 2))


def test_channels(tone):
    samples, write = tone
    six = np.stack([samples * gain for gain in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)], axis=1)
    path = write("six.wav", six, subtype="FLOAT")
    for channel, expected in {"mix": six.mean(axis=1), "left": six[:, 0], "right": six[:, 1]}.items():
        assert np.allclose(audio.read(path, sample_rate=44100, channel=channel), expected, atol=1e-6)
    mono = write("mono.wav", subtype="FLOAT")
    assert np.array_equal(audio.read(mono, sample_rate=44100, channel="right"), samples)
    with pytest.raises(ValueError, match="mix, left or right"):
        audio.read(path, sample_rate=44100, channel="centre")


def test_a_dead_channel_is_constant_and_the_mix_is_not(shared_audio):
    path = shared_audio / "formats" / "stereo_left_dead.wav"
    right = audio.read(path, sample_rate=RATE, channel="right")
    assert np.allclose(audio.read(path, sample_rate=RATE), right / 2)
    with pytest.raises(audio.AudioError, match=r"constant .*another channel"):
        audio.read(path, sample_rate=RATE, channel="left")


@pytest.mark.parametrize("value, reason", [(np.nan, "not finite"), (-np.inf, "not finite"), (3e38, "malformed")])
def test_samples_that_are_no_sound_are_named_with_their_second(tone, value, reason):
    samples, write = tone
    samples = samples.copy()
    samples[66150] = value
    path = write("nan.wav", samples, subtype="FLOAT")
    for options in ({}, {"start_seconds": 1.2}):
        with pytest.raises(audio.AudioError, match=r"at 1\.500 s") as caught:
            audio.read(path, sample_rate=RATE, **options)
        assert caught.value.reason == reason


def test_too_short_and_too_long(tone):
    samples, write = tone
    with pytest.raises(audio.AudioError, match="too long"):
        audio.read(write("a.wav"), sample_rate=RATE, max_seconds=1.5)
    with pytest.raises(audio.AudioError, match="too short"):
        audio.read(write("a.wav"), sample_rate=RATE, min_seconds=2.5)
    assert len(audio.read(write("b.wav", samples[:882]), sample_rate=44100)) == 882


def test_what_is_no_file_is_unreadable(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "absent.wav", tmp_path, tmp_path / "pipe.wav"):
        with pytest.raises(audio.AudioError) as caught:
            audio.probe(path)
        assert caught.value.reason == "unreadable"


def test_the_error_survives_a_process_pool():
    error = pickle.loads(pickle.dumps(audio.AudioError("a.wav", "constant", "every\nsample")))
    assert (error.path, error.reason, str(error)) == ("a.wav", "constant", "a.wav: constant (every sample)")


def test_aac_without_pyav_names_the_extra(shared_audio, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(audio.AudioError, match=re.escape("needs PyAV (pip install 'birdtpu[aac]')")):
        audio.probe(shared_audio / "formats" / "aac_44100.m4a")


def test_bare_aac_frames_decode(tone, tmp_path):
    av = pytest.importorskip("av")
    samples, _ = tone
    with av.open(str(tmp_path / "a.aac"), "w", format="adts") as file:
        track = file.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        file.mux([*track.encode(frame), *track.encode(None)])
    info = audio.probe(tmp_path / "a.aac")
    assert info.container == "AAC" and info.duration_seconds == pytest.approx(2.0, abs=0.1)
    assert len(audio.read(tmp_path / "a.aac", sample_rate=44100)) == info.frames


def test_an_m4a_with_tags_in_no_known_encoding_decodes(shared_audio, tmp_path):
    pytest.importorskip("av")
    path = shared_audio / "formats" / "aac_44100.m4a"
    data = path.read_bytes()
    at = data.rindex(b"Lavf")
    (tmp_path / "a.m4a").write_bytes(data[:at] + b"\xff\xfe" + data[at + 2 :])
    whole = audio.read(path, sample_rate=RATE)
    assert np.array_equal(audio.read(tmp_path / "a.m4a", sample_rate=RATE), whole)


def test_an_mp3_without_a_frame_count_is_read_to_its_end(tone):
    samples, write = tone
    quiet = samples * np.repeat([1e-4, 1.0], 44100).astype(np.float32)
    path = write("vbr.mp3", np.tile(quiet, 5), bitrate_mode="VARIABLE")
    whole = audio.read(path, sample_rate=44100)
    data = path.read_bytes()
    length, _ = containers._mp3_frame(data[:4])
    assert b"Xing" in data[:length]
    path.write_bytes(data[length:])
    assert audio.probe(path).duration_seconds == pytest.approx(len(whole) / 44100, abs=0.06)
    assert len(audio.read(path, sample_rate=44100)) == audio.probe(path).frames


def test_wavs_of_a_writer_that_did_not_know_the_length_are_good(tone):
    samples, write = tone
    path = write("piped.wav")
    data = path.read_bytes()
    path.write_bytes(data[:40] + b"\xff\xff\xff\xff" + data[44:])
    assert len(audio.read(path, sample_rate=44100)) == len(samples)


def test_big_endian_wavs_and_odd_chunks_are_good(tone):
    samples, write = tone
    path = write("big.wav", endian="BIG")
    assert audio.probe(path).container == "RIFX" and len(audio.read(path, sample_rate=44100)) == len(samples)
    path = write("odd.wav")
    data = path.read_bytes()
    path.write_bytes(data[:36] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + data[36:])
    assert len(audio.read(path, sample_rate=44100)) == len(samples)


@pytest.mark.parametrize("form, subtype", [("WAV", "IMA_ADPCM"), ("WAV", "GSM610"), ("AIFF", "IMA_ADPCM"),
                                           ("W64", "IMA_ADPCM"), ("CAF", "ALAC_16"), ("AU", "G721_32")])  # fmt: skip
def test_rare_codecs_are_refused_before_a_decoder_sees_them(tone, monkeypatch, form, subtype):
    _, write = tone
    path = write("rare.bin", format=form, subtype=subtype)
    monkeypatch.setattr(audio, "_LibsndfileSource", None)
    with pytest.raises(audio.AudioError) as caught:
        audio.read(path, sample_rate=RATE)
    assert caught.value.reason == "unsupported codec"


def test_a_header_that_claims_too_much_allocates_nothing(tone):
    samples, write = tone
    path = write("endless.flac")
    data = bytearray(path.read_bytes())
    data[18:26] = (int.from_bytes(data[18:26], "big") | (1 << 36) - 1).to_bytes(8, "big")
    path.write_bytes(data)
    with pytest.warns(audio.AudioWarning, match="2.00 s decoded of 15582"):
        assert len(audio.read(path, sample_rate=44100)) == len(samples)


def test_a_header_that_claims_too_little_is_told(tone):
    samples, write = tone
    path = write("more.flac", np.tile(samples, 5))
    data = bytearray(path.read_bytes())
    data[18:26] = (int.from_bytes(data[18:26], "big") >> 36 << 36 | 20000).to_bytes(8, "big")
    path.write_bytes(data)
    with pytest.warns(audio.AudioWarning, match="still to come"):
        assert len(audio.read(path, sample_rate=44100)) == 20000


LENGTHS = {"WAV": (b"data", "<I"), "AIFF": (b"SSND", ">I"), "CAF": (b"data", ">q"), "AU": (b".snd\0\0\0\x18", ">I")}


def _claim(path: Path, form: str, length: int) -> None:
    mark, layout = LENGTHS[form]
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, data.index(mark) + len(mark), length)
    path.write_bytes(data)


@pytest.mark.parametrize("form", LENGTHS)
@pytest.mark.parametrize("claimed", [0, 1000, 1002])
def test_audio_behind_an_understated_length_is_read_and_told(tone, form, claimed):
    samples, write = tone
    path = write("short.bin", format=form, subtype="PCM_16")
    whole = audio.read(path, sample_rate=44100)
    _claim(path, form, claimed)
    with pytest.warns(audio.AudioWarning, match=f"claims {claimed or 'no'} bytes of audio, 1764.. are there") as caught:
        assert np.array_equal(audio.read(path, sample_rate=44100), whole)
    assert len(caught) == 1 and len(whole) == len(samples)
    assert audio.probe(path).frames == len(samples)


@pytest.mark.parametrize(
    "behind",
    [
        b"LIST" + struct.pack("<I", 2000) + bytes(range(200)) * 10,
        b"id3 " + struct.pack("<I", 9000) + b"\1" * 2000,  # cut short
        b"TAG" + b"name".ljust(125, b"\1"),
        bytes(100_000),
    ],
    ids=["chunk", "cut chunk", "tag", "zeros"],
)
def test_what_is_no_audio_behind_the_audio_is_left(tone, behind):
    samples, write = tone
    path = write("tagged.wav")
    path.write_bytes(path.read_bytes() + behind)
    assert len(audio.read(path, sample_rate=44100)) == len(samples)


def test_an_rf64_that_claims_too_little_is_read_and_told(tone):
    samples, write = tone
    path = write("short.rf64", format="RF64", subtype="PCM_24")
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, data.index(b"ds64") + 16, 3000)
    path.write_bytes(data)
    with pytest.warns(audio.AudioWarning, match="claims 3000 bytes"):
        assert len(audio.read(path, sample_rate=44100)) == len(samples)


def test_a_wav_whose_length_wrapped_at_4_gib_is_whole(tone):
    _, write = tone
    path = write("day.wav")
    there = (1 << 32) + 32000
    _claim(path, "WAV", 32000)
    os.truncate(path, 44 + there)
    assert audio.probe(path).frames == there // 2


def test_joined_files_are_told_of(tone, tmp_path):
    samples, write = tone
    for name in ("a.ogg", "a.mp3"):
        data = write(name).read_bytes()
        path = tmp_path / f"joined_{name}"
        tag = b"TAG" + bytes(125) + b"ID3\4\0\0\0\0\0\x0a" + bytes(10) if name == "a.mp3" else b""
        for between in {b"", tag}:
            path.write_bytes(data + between + data)
            at = len(data + between)
            with pytest.warns(audio.AudioWarning, match=f"second stream follows at byte {at} and was left out"):
                assert len(audio.read(path, sample_rate=44100)) == len(samples)


def test_au_files_are_read(tone):
    samples, write = tone
    for subtype in ("PCM_16", "PCM_24", "FLOAT", "ULAW"):
        path = write("a.au", format="AU", subtype=subtype)
        assert audio.probe(path).container == "AU"
        read = audio.read(path, sample_rate=44100)
        assert len(read) == len(samples) and np.abs(read - samples).max() < 0.02
    _claim(path, "AU", 0xFFFFFFFF)  # of a writer to a pipe
    assert len(audio.read(path, sample_rate=44100)) == len(samples)
    _claim(path, "AU", 100_000)
    with pytest.warns(audio.AudioWarning, match="cut short: the header claims 100000 bytes"):
        assert len(audio.read(path, sample_rate=44100)) == len(samples)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(audio.AudioError, match="malformed"):
        audio.read(path, sample_rate=44100)


@pytest.mark.parametrize("magic", ["3026b2758e66cf11a6d900aa0062ce6c", "1a45dfa39f4286810142f7810142f281"])
def test_containers_that_nothing_here_reads_are_named(tmp_path, magic):
    (tmp_path / "a.bin").write_bytes(bytes.fromhex(magic) + bytes(100))
    with pytest.raises(audio.AudioError, match=r"W.*; convert it to FLAC or WAV") as caught:
        audio.read(tmp_path / "a.bin", sample_rate=RATE)
    assert caught.value.reason == "unsupported container"


def test_streaming_memory_does_not_grow_with_the_file(tone):
    samples, write = tone
    peaks = []
    for repeats in (10, 60):
        path = write("long.wav", np.tile(samples, repeats))
        tracemalloc.start()
        total = sum(len(block) for block in audio.stream(path, sample_rate=RATE))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == repeats * 2 * RATE
    assert peaks[1] < 1.1 * peaks[0] < 4e6


def test_good_files_pass_in_silence_and_broken_ones_are_named(shared_audio, tmp_path):
    mutations = _mutations()
    good, broken = mutations.make_folder(tmp_path, shared_audio, good=20, broken=2 * len(mutations.BROKEN), seed=5)
    for name in good:
        audio.read(tmp_path / name, sample_rate=RATE)
    for name in broken:
        with pytest.raises((audio.AudioError, audio.AudioWarning)) as caught:
            audio.read(tmp_path / name, sample_rate=RATE)
        assert name in str(caught.value)


FUZZ = """
import random, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mutations, numpy as np
from birdtpu.data import audio
warnings.simplefilter("ignore")
wholes = []
for samples, rate in mutations.excerpts(Path(sys.argv[2]), 2, 0):
    for form in [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "MS_ADPCM"), ("OGG", "VORBIS"), ("FLAC", "PCM_16"),
                 ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16"), ("AU", "PCM_16")]:
        wholes.append(mutations.encode(samples, rate, *form))
for seed in range(200):
    rng = random.Random(seed)
    Path(sys.argv[3]).write_bytes(mutations.mutate(rng.choice(wholes), rng))
    for options in ({}, {"start_seconds": 0.5, "duration_seconds": 0.3}):
        try:
            assert np.isfinite(audio.read(sys.argv[3], sample_rate=32000, **options)).all(), seed
        except audio.AudioError as error:
            assert "\\n" not in str(error), seed
"""


def test_random_damage_neither_crashes_nor_hangs(shared_audio, tmp_path):
    arguments = [str(Path(__file__).parent), str(shared_audio), str(tmp_path / "mutated.bin")]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_is_light():
    heavy = "{'av', 'keras', 'pandas', 'scipy', 'tensorflow', 'jax', 'matplotlib'}"
    code = f"import sys, birdtpu.data.audio; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
