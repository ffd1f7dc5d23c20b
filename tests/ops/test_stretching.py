"""Pitch and tempo against librosa's phase vocoder."""

import warnings

import librosa
import numpy as np
import pytest
from keras import ops

from birdtpu.layers.augmentation import crop
from birdtpu.ops import spectral, stretching

SAMPLE_RATE = 32000
BIRDCALL2020 = {"n_fft": 2048, "hop_length": 320, "n_mels": 128, "f_min": 50, "f_max": 14000}
QUICKSTART = {"n_fft": 1024, "hop_length": 640, "n_mels": 64, "f_min": 300, "f_max": 12000}
SEMITONES, RATES = [-2.0, -0.5, 1.0, 3.0], [0.9, 0.97, 1.1, 1.2]
BANDS = spectral.MelBands(128, 50, 14000)


def numpy(x):
    return ops.convert_to_numpy(x)


def mel_power(audio: np.ndarray, ratio: np.ndarray | None, setup: dict = BIRDCALL2020):
    n_fft, low, high = setup["n_fft"], setup["f_min"], setup["f_max"]
    bands = spectral.MelBands(setup["n_mels"], low, high)
    bins = spectral.bins_between(SAMPLE_RATE, n_fft, low / 1.2, high / 0.89)
    power = spectral.power_by_fft(audio[None], n_fft, n_fft, setup["hop_length"], bins)
    return stretching.mel_of_power(power, bands, bins * SAMPLE_RATE / n_fft, ratio)


def ours(audio: np.ndarray, setup: dict = BIRDCALL2020, semitones: float = 0.0, rate: float = 1.0) -> np.ndarray:
    """Mel power `(frames, mels)` with pitch and tempo changed."""
    ratio = np.array([2 ** (semitones / 12)], np.float32)
    mel = mel_power(audio, ratio, setup)
    frames = int((mel.shape[1] - 1) / rate) + 1
    start, rates = np.zeros(1, np.float32), np.array([rate], np.float32)
    smear = stretching.VOCODER_SMEAR_SECONDS * SAMPLE_RATE / setup["hop_length"]
    return numpy(crop(mel, ratio, start, rates, frames=frames, smear_frames=smear))[0]


def witness(audio: np.ndarray, setup: dict, semitones: float = 0.0, rate: float = 1.0) -> np.ndarray:
    """The same by librosa's vocoder."""
    with warnings.catch_warnings():
        # librosa 1.0 warns of arguments that its own functions pass on.
        warnings.simplefilter("ignore")
        if semitones:
            audio = librosa.effects.pitch_shift(audio, sr=SAMPLE_RATE, n_steps=semitones)
        if rate != 1:
            audio = librosa.effects.time_stretch(audio, rate=rate)
    return librosa.feature.melspectrogram(
        y=audio, sr=SAMPLE_RATE, n_fft=setup["n_fft"], hop_length=setup["hop_length"], n_mels=setup["n_mels"],
        fmin=setup["f_min"], fmax=setup["f_max"], pad_mode="constant",
    ).T  # fmt: skip


def difference(audio: np.ndarray, setup: dict, **change: float) -> float:
    """Mean absolute dB within 40 dB of the witness' peak, after the median level offset."""
    pair = ours(audio, setup, **change), witness(audio, setup, **change)
    frames = min(map(len, pair))
    a, b = (10 * np.log10(np.maximum(x[:frames], 1e-10)) for x in pair)
    near = b > b.max() - 40
    d = (a - b)[near]
    return float(np.abs(d - np.median(d)).mean())


@pytest.fixture(scope="module")
def recordings(shared_audio):
    import soundfile

    paths = sorted((shared_audio / "birdclef-mini/train_audio").glob("*/*.ogg"))[::40]
    return [soundfile.read(path, dtype="float32", frames=6 * SAMPLE_RATE)[0] for path in paths]


@pytest.mark.parametrize("semitones", SEMITONES)
def test_pitch_matches_librosa(recordings, semitones):
    for audio in recordings:
        assert difference(audio, BIRDCALL2020, semitones=semitones) < 2.5


@pytest.mark.parametrize("rate", RATES)
def test_tempo_matches_librosa(recordings, rate):
    for audio in recordings:
        assert difference(audio, BIRDCALL2020, rate=rate) < 2.5


@pytest.mark.parametrize("change", [*({"semitones": x} for x in SEMITONES), *({"rate": x} for x in RATES)], ids=str)
def test_at_quickstarts_stft_the_mean_over_recordings_matches_librosa(recordings, change):
    # A band of so short a window holds a bin or two, whose noise the vocoder draws anew: one recording reaches 3 dB.
    # librosa's own vocoder is 3.1 to 3.4 dB from itself where its n_fft is halved or doubled.
    assert np.mean([difference(audio, QUICKSTART, **change) for audio in recordings]) < 2.5


def test_nothing_drawn_changes_nothing():
    audio = np.random.default_rng(0).standard_normal(20000).astype(np.float32) * 0.1
    np.testing.assert_allclose(ours(audio), numpy(mel_power(audio, None))[0], rtol=1e-3, atol=1e-7)


def test_a_tone_moves_to_its_new_pitch():
    tone = np.sin(2 * np.pi * 3000 * np.arange(32000) / SAMPLE_RATE).astype(np.float32)
    for semitones in (-2, 3):
        band = ours(tone, semitones=semitones)[40:60].mean(axis=0).argmax()
        assert abs(BANDS.edges[band + 1] / (3000 * 2 ** (semitones / 12)) - 1) < 0.02


def test_a_click_moves_to_its_new_time():
    audio = np.zeros(2 * SAMPLE_RATE, np.float32)
    audio[SAMPLE_RATE] = 1
    assert abs(ours(audio, rate=1.25).mean(axis=1).argmax() - 100 / 1.25) <= 1


def test_examples_are_independent():
    rng = np.random.default_rng(1)
    mel = rng.random((2, 50, 8)).astype(np.float32) * np.array([1, 1e6], np.float32)[:, None, None]
    start, rate = np.array([1.0, 3.5], np.float32), np.array([0.9, 1.2], np.float32)
    both = numpy(stretching.read_frames(mel, start, rate, 30, np.array([1.0, 2.5])))
    for i, width in enumerate((1.0, 2.5)):
        alone = numpy(stretching.read_frames(mel[i : i + 1], start[i : i + 1], rate[i : i + 1], 30, width))
        np.testing.assert_allclose(both[i], alone[0], rtol=1e-5)


def test_read_frames_matches_a_slow_twin():
    mel = np.random.default_rng(2).random((1, 40, 3)).astype(np.float32)
    got = numpy(stretching.read_frames(mel, np.array([2.3], np.float32), np.array([1.1], np.float32), 20))[0]
    for i in range(20):
        at = 2.3 + 1.1 * i
        low, part = int(at), at - int(at)
        np.testing.assert_allclose(got[i], (1 - part) * mel[0, low] + part * mel[0, low + 1], atol=1e-5)
