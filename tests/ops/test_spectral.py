"""The STFT, mel bands and decibels against librosa."""

import librosa
import numpy as np
import pytest
from keras import ops

from birdtpu.ops import framing, spectral

SETUPS = [
    dict(sample_rate=32000, n_fft=2048, win_length=2048, hop_length=320, n_mels=128, f_min=50, f_max=14000, htk=False),
    dict(sample_rate=32000, n_fft=1024, win_length=1024, hop_length=640, n_mels=64, f_min=300, f_max=12000, htk=False),
    dict(sample_rate=32000, n_fft=1536, win_length=1024, hop_length=717, n_mels=40, f_min=90, f_max=14000, htk=True),
]


def numpy(x):
    return ops.convert_to_numpy(x)


def mel(audio: np.ndarray, setup: dict, fft: bool) -> np.ndarray:
    s = dict(setup)
    sample_rate, n_fft = s["sample_rate"], s["n_fft"]
    bins = spectral.bins_between(sample_rate, n_fft, s["f_min"], s["f_max"])
    if fft:
        parts = [(spectral.power_by_fft(audio, n_fft, s["win_length"], s["hop_length"], bins), bins)]
    else:
        kernel = spectral.stft_kernel(n_fft, s["win_length"], s["hop_length"], bins)
        convolved = spectral.convolved_bins(n_fft, s["hop_length"], bins)
        start = spectral.window_start(n_fft, s["win_length"])
        parts = zip(spectral.power_by_convolution(audio, kernel, n_fft, start), convolved, strict=True)
    bands = spectral.MelBands(s["n_mels"], s["f_min"], s["f_max"], s["htk"])
    return sum(numpy(power) @ bands.filters(each * sample_rate / n_fft) for power, each in parts)


def witness(audio: np.ndarray, s: dict) -> np.ndarray:
    return librosa.feature.melspectrogram(
        y=audio, sr=s["sample_rate"], n_fft=s["n_fft"], win_length=s["win_length"], hop_length=s["hop_length"],
        n_mels=s["n_mels"], fmin=s["f_min"], fmax=s["f_max"], htk=s["htk"], pad_mode="constant",
    ).T  # fmt: skip


def chirp(samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 32000
    return (0.3 * np.sin(2 * np.pi * (1000 * t + 2500 * t**2)) + 0.01 * rng.standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("fft", [False, True], ids=["convolution", "fft"])
@pytest.mark.parametrize("setup", SETUPS, ids=lambda s: f"n_fft {s['n_fft']}")
def test_log_mel_matches_librosa(setup, fft):
    audio = chirp(33000)
    ours = numpy(spectral.power_to_db(mel(audio[None], setup, fft), 80.0))[0]
    theirs = librosa.power_to_db(witness(audio, setup), top_db=80)
    assert ours.shape == theirs.shape == (framing.frame_count(33000, setup["hop_length"]), setup["n_mels"])
    np.testing.assert_allclose(ours, theirs, atol=1e-2)


def test_log_mel_matches_librosa_on_a_real_recording(shared_audio):
    import soundfile

    audio, _ = soundfile.read(shared_audio / "birdclef-mini/train_audio/bagwea1/XC205521.ogg", dtype="float32")
    audio = audio[: 5 * 32000]
    for fft in (False, True):
        ours = numpy(spectral.power_to_db(mel(audio[None], SETUPS[0], fft), 80.0))[0]
        np.testing.assert_allclose(ours, librosa.power_to_db(witness(audio, SETUPS[0]), top_db=80), atol=1e-2)


@pytest.mark.parametrize("hop_length", [369, 370])
@pytest.mark.parametrize("win_length", [82, 2645, 4096])
def test_a_short_window_needs_few_blocks(win_length, hop_length):
    audio, bins = chirp(9000)[None], np.arange(30, 700)
    kernel = spectral.stft_kernel(4096, win_length, hop_length, bins)
    assert kernel.shape[2] <= -(-(win_length + 2) // hop_length)
    convolved = spectral.convolved_bins(4096, hop_length, bins)
    start = spectral.window_start(4096, win_length)
    truth = abs(librosa.stft(audio[0], n_fft=4096, win_length=win_length, hop_length=hop_length, pad_mode="constant"))
    for power, each in zip(spectral.power_by_convolution(audio, kernel, 4096, start), convolved, strict=True):
        got, asked = numpy(power)[0][:, each > 0], (truth**2).T[:, each[each > 0]]
        # Seventy decibels below the chirp, which is in another bin, a float32's rounding is seen.
        np.testing.assert_allclose(got, asked, rtol=1e-4, atol=1e-7 * (truth**2).max())


def test_bands_of_equal_height_are_librosas():
    ours = spectral.MelBands(64, 90, 14000, htk=True, norm="none").filters(np.arange(1025) * 32000 / 2048)
    theirs = librosa.filters.mel(sr=32000, n_fft=2048, n_mels=64, fmin=90, fmax=14000, htk=True, norm=None)
    np.testing.assert_allclose(ours, theirs.T, atol=1e-6)


@pytest.mark.parametrize("htk", [False, True])
def test_a_bank_without_its_lowest_bands_is_a_bank_from_a_higher_edge(htk):
    frequencies = np.arange(2049) * 22050 / 4096
    whole = spectral.MelBands(320, 0, 11025, htk)
    rest = spectral.MelBands(299, whole.edges[21], 11025, htk)
    np.testing.assert_allclose(rest.filters(frequencies), whole.filters(frequencies)[:, 21:], atol=1e-6)


@pytest.mark.parametrize(("n_fft", "hop_length"), [(2048, 320), (1024, 640), (54, 10), (1536, 717), (81, 20)])
def test_every_bin_is_convolved_once(n_fft, hop_length):
    audio, bins = chirp(5000)[None], np.arange(2, n_fft // 2 - 1)
    convolved = spectral.convolved_bins(n_fft, hop_length, bins)
    assert len(convolved) == (1 if n_fft % 2 or hop_length % 2 else 2)
    every = np.concatenate(convolved)
    assert set(bins) <= set(every) and len(set(every[every > 0])) == (every > 0).sum()
    kernel = spectral.stft_kernel(n_fft, n_fft - 4, hop_length, bins)
    powers = spectral.power_by_convolution(audio, kernel, n_fft, spectral.window_start(n_fft, n_fft - 4))
    truth = numpy(spectral.power_by_fft(audio, n_fft, n_fft - 4, hop_length, np.arange(n_fft // 2 + 1)))
    for power, each in zip(powers, convolved, strict=True):
        got, asked = numpy(power)[..., each > 0], truth[..., each[each > 0]]
        np.testing.assert_allclose(got, asked, rtol=1e-5, atol=1e-6 * truth.max())


def test_no_band_weighs_the_bin_0():
    # It stands for those that are there already.
    for bands in (spectral.MelBands(40, 0, 16000), spectral.MelBands(40, 50, 16000, htk=True)):
        assert (bands.filters(np.zeros(1)) == 0).all() and (numpy(bands.filters(ops.zeros((1, 1)))) == 0).all()


def test_a_tone_peaks_in_its_band():
    setup = SETUPS[0]
    tone = np.sin(2 * np.pi * 4000 * np.arange(32000) / 32000).astype(np.float32)
    bands = spectral.MelBands(setup["n_mels"], setup["f_min"], setup["f_max"])
    centre = bands.edges[1:-1][mel(tone[None], setup, False)[0, 50].argmax()]
    assert abs(centre - 4000) < 100


def test_silence_is_finite():
    db = numpy(spectral.power_to_db(mel(np.zeros((1, 16000), np.float32), SETUPS[0], True), 80.0))
    np.testing.assert_allclose(db, -100, atol=1e-4)


@pytest.mark.parametrize("fft", [False, True])
def test_examples_are_independent(fft):
    loud, quiet = chirp(16000, 1), chirp(16000, 2) * 1e-3
    both = numpy(spectral.power_to_db(mel(np.stack([loud, quiet]), SETUPS[0], fft), 80.0))
    for i, alone in enumerate((loud, quiet)):
        np.testing.assert_allclose(
            both[i], numpy(spectral.power_to_db(mel(alone[None], SETUPS[0], fft), 80.0))[0], atol=2e-3
        )


@pytest.mark.filterwarnings("ignore:n_fft=.* is too large:UserWarning")
@pytest.mark.parametrize("samples", [1, 319, 2048, 5000])
def test_short_audio_has_all_its_frames(samples):
    audio = chirp(samples)
    for fft in (False, True):
        got = mel(audio[None], SETUPS[0], fft)[0]
        np.testing.assert_allclose(got, witness(audio, SETUPS[0]), atol=1e-6, rtol=1e-3)


def test_mel_scale_inverts_itself():
    hz = np.array([0, 100, 999, 1000, 1001, 14000.0])
    for htk in (False, True):
        np.testing.assert_allclose(spectral.mel_to_hz(spectral.hz_to_mel(hz, htk), htk), hz, atol=1e-9)
        np.testing.assert_allclose(spectral.hz_to_mel(hz, htk), librosa.hz_to_mel(hz, htk=htk))


def test_bands_of_tensors_equal_bands_of_arrays():
    bands = spectral.MelBands(64, 300, 12000)
    frequencies = np.linspace(0, 16000, 513)
    on_device = numpy(bands.filters(ops.convert_to_tensor(frequencies.astype(np.float32)[None])))[0]
    np.testing.assert_allclose(on_device, bands.filters(frequencies), atol=1e-8, rtol=1e-3)
