"""What is done to waveforms."""

import numpy as np
import pytest
from keras import ops

from birdtpu.errors import UserError
from birdtpu.inference.runtimes.keras import compiled
from birdtpu.keys import Augment
from birdtpu.layers.augmentation import Mixup
from birdtpu.layers.waveform import Waveform

RNG = np.random.default_rng(0)
SAMPLES = 4000
HOP, FRAMES = 128, 1 + 4000 // 128


def numpy(x):
    return ops.convert_to_numpy(x)


def labels_of(data: dict) -> dict:
    return {name: data[name] for name in ("targets", "target_mask")}


def waveform(**keys) -> Waveform:
    augment = Augment(**{"mixup_probability": 0.0} | keys)
    return Waveform(augment, Mixup(augment.mixup_probability, 0.5, True), HOP)


def batch(rows: int = 16, **more) -> dict:
    audio = RNG.standard_normal((rows, SAMPLES)) * 10.0 ** RNG.uniform(-4, -0.5, (rows, 1))
    return {
        "audio": audio.astype(np.float32),
        "targets": np.eye(rows, dtype=np.float32),
        "target_mask": np.ones((rows, rows), np.float32),
        "seed": np.arange(rows, dtype=np.int32),
        **more,
    }


def sound(layer: Waveform, data: dict) -> np.ndarray:
    return numpy(compiled(lambda data: layer(data, labels_of(data))[0])(data))


def other(rows: int = 16) -> np.ndarray:
    return RNG.standard_normal((rows, SAMPLES)).astype(np.float32)


def power(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float64) ** 2).mean(axis=1)


ALL = {
    "partner_probability": 0.8, "background_probability": 0.8, "gaussian_noise_probability": 0.8,
    "uniform_noise_probability": 0.8, "pink_noise_probability": 0.8, "loudness_probability": 0.8,
}  # fmt: skip


def test_nothing_asked_leaves_the_integers_as_they_are():
    data = batch(audio_gain=np.ones(16, np.float32)) | {"audio": np.ones((16, SAMPLES), np.int16)}
    audio, gain, labels = waveform(mixup_probability=0.5, mixup_on="power")(data, labels_of(data))
    assert audio is data["audio"] and gain is data["audio_gain"]
    assert all(labels[name] is data[name] for name in labels_of(data))


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "pink"])
def test_noise_comes_as_often_and_as_loud_as_asked(kind):
    data = batch(400)
    out = sound(waveform(**{f"{kind}_noise_probability": 0.6}, noise_snr_db=(10.0, 20.0)), data)
    added = out.astype(np.float64) - data["audio"]
    noisy = power(added) > 1e-9 * power(data["audio"])
    assert noisy.mean() == pytest.approx(0.6, abs=0.08)
    snr_db = 10 * np.log10(power(data["audio"])[noisy] / power(added)[noisy])
    assert snr_db.min() > 9.9 and snr_db.max() < 20.1 and snr_db.mean() == pytest.approx(15, abs=0.6)
    np.testing.assert_array_equal(out[~noisy], data["audio"][~noisy])
    # Each example has a noise of its own.
    unit = added[noisy] / np.sqrt(power(added[noisy]))[:, None]
    assert np.abs(np.triu(unit @ unit.T / SAMPLES, 1)).max() < (0.2 if kind != "pink" else 0.9)


def test_a_background_lies_below_the_example_by_its_ratio():
    background = other(200) * 30
    background[0] = 0
    data = batch(200, background_audio=background.astype(np.int16))
    out = numpy(waveform(background_probability=1.0, background_snr_db=(3.0, 9.0))(data, labels_of(data))[0])
    added = (out.astype(np.float64) - data["audio"])[1:]
    snr_db = 10 * np.log10(power(data["audio"])[1:] / power(added))
    assert snr_db.min() > 2.9 and snr_db.max() < 9.1 and snr_db.std() > 1
    np.testing.assert_allclose(np.corrcoef(added[5], np.trunc(background[6]))[0, 1], 1, atol=1e-3)
    np.testing.assert_array_equal(out[0], data["audio"][0])


def test_the_same_species_is_blended_in_at_one_level():
    partner = other(300) * 100
    data = batch(300, partner_audio=partner)
    partner[1], data["audio"][2] = 0, 0
    out, _, labels = waveform(partner_probability=0.7, partner_weights=(0.5, 1.0))(data, labels_of(data))
    out = numpy(out)
    own = data["audio"] / np.sqrt(np.maximum(power(data["audio"]), 1e-20))[:, None]
    unit = out / np.sqrt(np.maximum(power(data["audio"]), 1e-20))[:, None]
    weight = (unit * own).mean(axis=1)
    rest = (unit * partner / 100).mean(axis=1)
    blended = np.abs(rest) > 0.06
    usual = np.arange(300) > 2
    assert blended[usual].mean() == pytest.approx(0.62, abs=0.1)
    np.testing.assert_allclose((weight + rest)[usual], 1, atol=0.1)
    assert weight[usual].min() > 0.45
    np.testing.assert_allclose(out[1], data["audio"][1], rtol=1e-5)
    # A silent example takes the partner's sound and level.
    assert power(out[2:3])[0] <= power(partner[2:3])[0] * 0.25 + 1e-9
    assert all(labels[name] is data[name] for name in labels_of(data))


def test_loudness_is_drawn_in_decibels():
    data = batch(400)
    out = numpy(waveform(loudness_probability=0.75, loudness_db=(-20.0, 0.0))(data, labels_of(data))[0])
    gain_db = 10 * np.log10(power(out) / power(data["audio"]))
    changed = np.abs(gain_db) > 1e-4
    assert changed.mean() == pytest.approx(0.75, abs=0.07)
    assert gain_db.min() > -20.01 and gain_db[changed].mean() == pytest.approx(-10, abs=1)


def test_waveforms_mix_here_where_asked():
    data = batch()
    layer = waveform(mixup_probability=1.0, mixup_on="waveform")
    audio, gain, labels = layer(data, labels_of(data))
    twin = layer.mixup.of_waveforms(data["audio"], labels_of(data), data["seed"])
    np.testing.assert_array_equal(numpy(audio), numpy(twin[0]))
    assert gain is None and layer.mixes and (numpy(labels["targets"]).sum(axis=1) == 2).all()
    assert not waveform(mixup_probability=1.0).mixes


def test_integers_are_the_same_sound():
    pcm = np.round(RNG.standard_normal((16, SAMPLES)) * 3000).astype(np.int16)
    gain = np.geomspace(1e-6, 1e-4, 16).astype(np.float32)
    data = batch(partner_audio=other(), background_audio=other())
    layer = waveform(**ALL)
    integers = sound(layer, data | {"audio": pcm, "audio_gain": gain})
    floats = sound(layer, data | {"audio": pcm * gain[:, None]})
    np.testing.assert_allclose(integers, floats, rtol=1e-5, atol=1e-7)


def test_examples_are_independent():
    data = batch(partner_audio=other(), background_audio=other())
    layer = waveform(**ALL)
    whole = sound(layer, data)
    for i in range(2):
        alone = sound(layer, {name: value[i : i + 1] for name, value in data.items()})[0]
        np.testing.assert_allclose(alone, whole[i], rtol=1e-5, atol=1e-5 * np.abs(whole[i]).max())


def test_silence_stays_silent_beside_what_is_loud():
    data = batch(background_audio=other())
    data["audio"][::2] = 0
    out = sound(waveform(**ALL | {"partner_probability": 0.0}, mixup_on="waveform"), data)
    assert np.isfinite(out).all() and (out[::2] == 0).all() and (power(out[1::2]) > 0).all()


def test_same_eager_and_compiled():
    data = batch(partner_audio=other(), background_audio=other())
    layer = waveform(**ALL | {"mixup_probability": 0.7}, mixup_on="waveform")
    eager, fast = numpy(layer(data, labels_of(data))[0]), sound(layer, data)
    np.testing.assert_allclose(fast, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["partner", "background"])
def test_a_batch_without_what_is_asked_for_is_named(name):
    with pytest.raises(UserError, match=rf"augment\.{name}_probability: the batches hold no {name}_audio"):
        waveform(**{f"{name}_probability": 0.5})(batch(), labels_of(batch()))


def boxes(rows: int = 16) -> dict:
    """Frames' labels with one box a row, of class `row % 3`; odd rows' boxes say no, and every fifth row has none."""
    targets, mask = np.zeros((2, rows, FRAMES, 3), np.float32)
    for row in range(rows):
        first = int(RNG.integers(0, FRAMES - 6))
        if row % 5:
            mask[row, first : first + 5, row % 3] = 1
            targets[row, first : first + 5, row % 3] = 1 - row % 2
    return {"frame_targets": targets, "frame_mask": mask}


def with_boxes(layer: Waveform, data: dict) -> tuple[np.ndarray, dict]:
    names = ("targets", "target_mask", "frame_targets", "frame_mask")
    sound, _, labels = compiled(lambda data: layer(data, {name: data[name] for name in names}))(data)
    return numpy(sound), {name: numpy(labels[name]) for name in names}


def test_what_is_absent_is_played_backwards_and_nothing_else_is():
    frames = boxes()
    targets = np.zeros((16, 3), np.float32)
    targets[2, 1] = 1
    data = batch(**frames) | {"targets": targets, "target_mask": np.ones_like(targets)}
    sound, labels = with_boxes(waveform(flip_absent_probability=1.0), data)
    present = (targets.max(axis=1) > 0) | (frames["frame_targets"].max(axis=(1, 2)) > 0)
    assert 4 < present.sum() < 12
    for row in range(16):
        step = 1 if present[row] else -1
        np.testing.assert_array_equal(sound[row], data["audio"][row, ::step])
        for name, value in frames.items():
            np.testing.assert_array_equal(labels[name][row], value[row, ::step])
    some, _ = with_boxes(waveform(flip_absent_probability=0.5), data)
    turned = (some != data["audio"]).any(axis=1)
    assert not turned[present].any() and 0 < turned[~present].sum() < (~present).sum()


def test_an_annotated_stretch_is_cut_out_and_pasted_with_its_labels():
    data = batch(**boxes()) | {"targets": np.zeros((16, 3), np.float32), "target_mask": np.zeros((16, 3), np.float32)}
    sound, labels = with_boxes(waveform(paste_probability=1.0), data)
    nearest = np.minimum((np.arange(SAMPLES) + HOP // 2) // HOP, FRAMES - 1)
    partners = set()
    for row in range(16):
        group = [other for other in range(row // 8 * 8, row // 8 * 8 + 8) if other != row]
        fits = []
        for other in group:
            there = data["frame_mask"][other].max(axis=1) > 0
            twin = np.where(there[nearest], data["audio"][other], data["audio"][row])
            frames = {
                name: np.where(there[:, None], data[name][other], data[name][row])
                for name in ("frame_targets", "frame_mask")
            }
            same = all(np.array_equal(labels[name][row], frames[name]) for name in frames)
            fits += [other - row] if same and np.allclose(sound[row], twin, rtol=1e-6, atol=0) else []
        assert fits
        partners.update(fits)
    assert len(partners) > 4
    untouched, _ = with_boxes(waveform(paste_probability=1e-9), data)
    np.testing.assert_array_equal(untouched, data["audio"])


@pytest.mark.parametrize("kind", ["flip_absent", "partner", "paste"])
def test_a_teacher_says_nothing_of_a_sound_that_it_never_heard(kind):
    teacher = RNG.standard_normal((16, 4)).astype(np.float32)
    data = batch(**boxes(), partner_audio=other(), teacher=teacher)
    data |= {"targets": np.zeros((16, 3), np.float32), "target_mask": np.zeros((16, 3), np.float32)}
    names = ("targets", "target_mask", "frame_targets", "frame_mask", "teacher")
    layer = waveform(**{f"{kind}_probability": 0.6})
    sound, _, labels = layer(data, {name: data[name] for name in names})
    sound, said = numpy(sound), numpy(labels["teacher"])
    same = np.array([np.allclose(sound[row], data["audio"][row], rtol=1e-4) for row in range(16)])
    assert 0 < same.sum() < 16
    np.testing.assert_array_equal(said, np.where(same[:, None], teacher, 0))
