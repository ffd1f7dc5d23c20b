"""Layers: serialisation, the attention block, dropout, images."""

import keras
import librosa
import numpy as np
import pytest
from keras import ops

from birdtpu.layers.attention import AttentionHead
from birdtpu.layers.channel_attention import ChannelAttention
from birdtpu.layers.decibel import Decibel, FixedDecibel
from birdtpu.layers.dropout import SeededDropout, seed_scope
from birdtpu.layers.grouped_conv import GroupedConv2D, StandardizedConv2D
from birdtpu.layers.image import Image, resize_matrix
from birdtpu.layers.mel_spectrogram import MelSpectrogram
from birdtpu.layers.pcen import PCEN

RNG = np.random.default_rng(0)
STFT = dict(sample_rate=32000, n_fft=1024, win_length=1024, hop_length=640, n_mels=32, f_min=300.0, f_max=12000.0)
LAYERS = {
    "mel": (MelSpectrogram(**STFT, htk=True, pitch_range=(0.9, 1.1)), (2, 3200)),
    "windows": (MelSpectrogram(**STFT | {"win_length": (1024, 256, 61)}, norm="none"), (2, 3200)),
    "decibel": (Decibel(60.0), (2, 9, 8)),
    "fixed decibel": (FixedDecibel(30.0, 60.0), (2, 9, 8)),
    "pcen": (PCEN(0.1, 0.5, 1.0, 0.3, 1e-5, 2.0, False, "frame", 0.2), (2, 9, 8)),
    "pcen of windows": (PCEN(0.1), (2, 40, 8, 3)),
    "image": (Image((6, 4), 3, (255.0, 1.0, 2.0), (-1.0, -2.0, -3.0)), (2, 9, 8)),
    "image of windows": (Image((6, 4), 3, 2.0, -1.0), (2, 9, 8, 3)),
    "image with a ramp": (Image(None, 3, 2.0, -1.0, ramp=True), (2, 9, 8)),
    "attention": (AttentionHead(5, "soft"), (2, 7, 4)),
    "dropout": (SeededDropout(0.3, (None, 1, 1)), (2, 7, 4)),
    "grouped": (GroupedConv2D(6, 3, groups=2), (2, 7, 5, 4)),
    "standardized": (StandardizedConv2D(6, 3, 2, "valid", groups=2, gamma=1.7), (2, 7, 6, 4)),
    "channels": (ChannelAttention(), (2, 5, 4, 20)),
}


def numpy(x):
    return keras.tree.map_structure(ops.convert_to_numpy, x)


@pytest.mark.parametrize("name", LAYERS)
def test_survives_serialization(name):
    layer, shape = LAYERS[name]
    x = RNG.random(shape).astype(np.float32)
    before = numpy(layer(x))
    twin = layer.__class__.from_config(layer.get_config())
    twin.build(shape)
    twin.set_weights(layer.get_weights())
    keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), before, numpy(twin(x)))


@pytest.mark.parametrize("name", LAYERS)
def test_states_its_output_shape(name):
    layer, shape = LAYERS[name]
    got = keras.tree.map_structure(lambda x: tuple(x.shape), layer(RNG.random(shape).astype(np.float32)))
    assert got == layer.compute_output_shape(shape)


def test_attention_matches_a_numpy_twin():
    layer = AttentionHead(3, "tanh")
    x = RNG.standard_normal((2, 6, 4)).astype(np.float32)
    out = numpy(layer(x))
    wa, ba, wc, bc = (np.squeeze(w) for w in layer.get_weights())
    z = np.tanh(x @ wa + ba)
    norm_att = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    segmentwise = 1 / (1 + np.exp(-(x @ wc + bc)))
    np.testing.assert_allclose(out["norm_att"], norm_att, atol=1e-6)
    np.testing.assert_allclose(out["segmentwise"], segmentwise, atol=1e-6)
    np.testing.assert_allclose(out["clipwise"], (norm_att * segmentwise).sum(axis=1), atol=1e-6)
    assert (ba == 0).all() and (bc == 0).all()


def test_decibel_spans_zero_to_one_for_each_example():
    power = 10 ** RNG.uniform(-12, 0, (3, 20, 10)).astype(np.float32)
    power[1] *= 1e-6
    out = numpy(Decibel(80.0)(power))
    np.testing.assert_allclose(out.max(axis=(1, 2)), 1, atol=1e-6)
    assert out.min() >= -1e-6
    np.testing.assert_allclose(out[1], numpy(Decibel(80.0)(power[1:2]))[0], atol=1e-6)
    # As dark as can be: shown as peaks, the gaps in a recording would be detections.
    assert (numpy(Decibel()(np.zeros((1, 3, 3), np.float32))) == 0).all()
    # A faint recording is the same picture.
    np.testing.assert_allclose(numpy(Decibel(80.0)(power * np.float32(1e-9))), out, atol=1e-4)


def test_decibel_matches_librosa():
    power = 10 ** RNG.uniform(-12, 0, (1, 20, 10)).astype(np.float32)
    truth = librosa.power_to_db(power[0], ref=np.max, amin=1e-30, top_db=60) / 60 + 1
    np.testing.assert_allclose(numpy(Decibel(60.0)(power))[0], truth, atol=1e-5)


def test_fixed_decibels_do_not_know_their_peak():
    power = 10 ** RNG.uniform(-12, 4, (2, 20, 10)).astype(np.float32)
    out = numpy(FixedDecibel(40.0, 80.0)(power))
    truth = (librosa.power_to_db(power, amin=1e-10, top_db=None) - 40) / 80
    np.testing.assert_allclose(out, truth, atol=1e-5)
    np.testing.assert_allclose(numpy(FixedDecibel(40.0, 80.0)(power[:1, :5]))[0], out[0, :5], atol=1e-6)
    np.testing.assert_allclose(numpy(FixedDecibel()(np.zeros((1, 2, 2), np.float32))), -140 / 80)


def test_each_channel_has_its_own_peak():
    power = 10 ** RNG.uniform(-6, 0, (2, 20, 10, 3)).astype(np.float32) * np.float32([1, 1e-5, 1e5])
    out = numpy(Decibel(50.0)(power))
    for channel in range(3):
        np.testing.assert_allclose(out[..., channel], numpy(Decibel(50.0)(power[..., channel])), atol=1e-6)


@pytest.mark.parametrize("start", ["one", "frame"])
@pytest.mark.parametrize("magnitude", [True, False])
def test_pcen_matches_librosa_and_stays_below_one(magnitude, start):
    power = RNG.gamma(2, 1e-3, (2, 300, 5)).astype(np.float32)
    power[1] *= 1e-6
    out = numpy(PCEN(0.03, magnitude=magnitude, start=start, half=0.7)(power))
    for i in range(2):
        energy = power[i].T.astype(np.float64)
        energy = np.sqrt(energy) * 2**31 if magnitude else energy * 2.0**62
        zi = None if start == "one" else 0.97 * energy[:, :1]
        truth = librosa.pcen(energy, b=0.03, zi=zi).T
        np.testing.assert_allclose(out[i] / (1 - out[i]) * 0.7, truth, rtol=2e-4)
        np.testing.assert_allclose(
            numpy(PCEN(0.03, magnitude=magnitude, start=start, half=0.7)(power[i : i + 1]))[0], out[i], atol=1e-6
        )
    assert out.min() >= 0 and out.max() < 1
    click = np.zeros((1, 50, 2), np.float32)
    click[0, 40] = 1e4
    for power in (np.zeros_like(click), click):
        out = numpy(PCEN(0.03, magnitude=magnitude, start=start)(power))
        assert np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1
        assert (out[:, :40] == 0).all()


def test_channels_have_each_their_own_pcen():
    power = RNG.gamma(2, 1e-3, (2, 70, 5, 3)).astype(np.float32)
    out = numpy(PCEN(0.1)(power))
    for channel in range(3):
        np.testing.assert_allclose(out[..., channel], numpy(PCEN(0.1)(power[..., channel])), atol=1e-6)


@pytest.mark.parametrize("fft", [True, False])
def test_each_window_is_a_channel(fft):
    audio, windows = RNG.standard_normal((2, 9000)).astype(np.float32), (1024, 300, 81)
    gain, ratio = np.float32([1, 0.5]), np.float32([0.95, 1.05])
    stft = STFT | {"hop_length": 369, "pitch_range": (0.9, 1.1), "fft": fft}
    out = numpy(MelSpectrogram(**stft | {"win_length": windows})(audio, ratio, gain))
    assert out.shape == (2, 25, 32, 3)
    for channel, win_length in enumerate(windows):
        alone = numpy(MelSpectrogram(**stft | {"win_length": win_length})(audio, ratio, gain))
        np.testing.assert_array_equal(out[..., channel], alone)


def test_a_picture_keeps_its_channels_or_gets_a_ramp():
    log_mel = RNG.random((2, 9, 8, 3)).astype(np.float32)
    for size in (None, (6, 4)):
        out = numpy(Image(size, 3, 2.0, (0.0, 1.0, -1.0))(log_mel))
        for channel, offset in enumerate((0, 1, -1)):
            alone = numpy(Image(size, 1, 2.0, offset)(log_mel[..., channel]))[..., 0]
            np.testing.assert_allclose(out[..., channel], alone, atol=1e-6)
        ramped = numpy(Image(size, 3, 2.0, -1.0, ramp=True)(log_mel[..., 0]))
        plain = numpy(Image(size, 3, 2.0, -1.0)(log_mel[..., 0]))
        np.testing.assert_allclose(ramped[..., :2], plain[..., :2], atol=1e-6)
        ramp = np.linspace(0, 1, plain.shape[2]) * 2 - 1
        np.testing.assert_allclose(ramped[..., 2], np.broadcast_to(ramp, plain.shape[:3]), atol=1e-6)
        two = numpy(Image(size, 3, 2.0, -1.0, ramp=True)(log_mel[..., :2]))
        np.testing.assert_allclose(two[..., 2], ramped[..., 2], atol=1e-6)
        np.testing.assert_allclose(two[..., 1], numpy(Image(size, 1, 2.0, -1.0)(log_mel[..., 1]))[..., 0], atol=1e-6)


def test_resizing_matches_a_reference():
    import jax

    image = RNG.random((501, 128)).astype(np.float32)
    ours = resize_matrix(501, 224) @ image @ resize_matrix(128, 224).T
    theirs = np.asarray(jax.image.resize(image, (224, 224), "linear", antialias=True))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_image_scales_each_channel():
    x = RNG.random((1, 4, 5)).astype(np.float32)
    out = numpy(Image(None, 3, 2.0, (0.0, 1.0, -1.0))(x))
    for channel, offset in enumerate((0, 1, -1)):
        np.testing.assert_allclose(out[..., channel], 2 * x + offset, atol=1e-6)


def test_dropout_depends_on_the_examples_seed_alone():
    layer = SeededDropout(0.4, name="d")
    x = np.ones((3, 50, 20), np.float32)
    with seed_scope(np.array([5, 6, 7], np.int32)):
        whole = numpy(layer(x, training=True))
    with seed_scope(np.array([6], np.int32)):
        alone = numpy(layer(x[:1], training=True))
    np.testing.assert_array_equal(whole[1:2], alone)
    assert not np.array_equal(whole[0], whole[1])
    assert abs((whole == 0).mean() - 0.4) < 0.03
    np.testing.assert_allclose(whole[whole != 0], 1 / 0.6, rtol=1e-6)


def test_two_dropouts_draw_two_masks():
    x, seed = np.ones((1, 400), np.float32), np.array([1], np.int32)
    with seed_scope(seed):
        a, b = (numpy(SeededDropout(0.5, name=name)(x, training=True)) for name in ("a", "b"))
    assert not np.array_equal(a, b)


def test_drop_connect_drops_whole_examples():
    with seed_scope(np.arange(64, dtype=np.int32)):
        out = numpy(SeededDropout(0.5, (None, 1, 1), name="c")(np.ones((64, 3, 2), np.float32), training=True))
    assert all(len(np.unique(example)) == 1 for example in out)
    assert 10 < (out[:, 0, 0] == 0).sum() < 54


def test_dropout_needs_its_seeds_only_in_training():
    layer, x = SeededDropout(0.5), np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(numpy(layer(x)), x)
    with pytest.raises(RuntimeError, match="seed_scope"):
        layer(x, training=True)


def test_mel_names_its_empty_bands():
    crowded = MelSpectrogram(**{**STFT, "n_mels": 200})
    assert len(crowded.empty_bands()) > 0
    assert len(MelSpectrogram(**STFT).empty_bands()) == 0


@pytest.mark.parametrize("fft", [True, False])
def test_integers_and_their_gain_are_the_same_sound(fft):
    layer = MelSpectrogram(16000, 512, 512, 160, 40, 50, 8000, fft=fft)
    pcm = np.random.default_rng(4).integers(-32768, 32768, (2, 8000)).astype(np.int16)
    pcm[1] //= 1000
    gain = np.array([2.0**-15, 3e-5], np.float32)
    ratio = np.array([0.9, 1.1], np.float32)
    floats = numpy(layer(pcm.astype(np.float32) * gain[:, None], ratio))
    np.testing.assert_allclose(numpy(layer(pcm, ratio, gain)), floats, rtol=1e-3, atol=1e-6 * floats.max())
