"""What the augmentation draws."""

import keras
import numpy as np
import pytest
from keras import ops

from birdtpu.layers.augmentation import Mixup, PitchTempo, RandomFloor, SpecAugment, crop

SEEDS = np.arange(4000, dtype=np.int32)
RNG = np.random.default_rng(0)


def numpy(x):
    return keras.tree.map_structure(ops.convert_to_numpy, x)


def test_pitch_and_tempo_stay_in_their_ranges_and_inside_the_source():
    draw = PitchTempo(0.5, (-2.0, 3.0), 0.5, (0.9, 1.2))
    ratio, start, rate = (numpy(x) for x in draw(SEEDS, 601, 501))
    low, high = draw.pitch_range
    assert ratio.min() >= low - 1e-6 and ratio.max() <= high + 1e-6
    assert rate.min() >= 0.9 and rate.max() <= 1.2
    assert (start >= 0).all() and (start + rate * 500 <= 600 + 1e-3).all()
    own_pace = rate == 1
    assert own_pace.any() and (start[own_pace] == np.floor(start[own_pace])).all()
    assert (start[~own_pace] != np.floor(start[~own_pace])).any()
    assert abs((ratio == 1).mean() - 0.5) < 0.03 and abs((rate == 1).mean() - 0.5) < 0.03
    assert abs(np.corrcoef(ratio, rate)[0, 1]) < 0.05


def test_a_short_margin_bounds_the_rate():
    _, start, rate = (numpy(x) for x in PitchTempo(0.0, (0, 0), 1.0, (0.9, 1.2))(SEEDS, 520, 501))
    assert rate.max() <= 519 / 500 + 1e-6
    assert (start + rate * 500 <= 519 + 1e-3).all()


def test_no_probability_leaves_all_as_it_is():
    draw = PitchTempo(0.0, (-2.0, 3.0), 0.0, (0.9, 1.2))
    ratio, start, rate = (numpy(x) for x in draw(SEEDS, 101, 101))
    assert draw.pitch_range == (1.0, 1.0)
    assert (ratio == 1).all() and (rate == 1).all() and (start == 0).all()


def test_a_crop_is_a_slice_where_nothing_is_stretched():
    power = RNG.random((2, 30, 4)).astype(np.float32)
    one = np.ones(2, np.float32)
    out = numpy(crop(power, one, np.array([0.0, 5.0], np.float32), one, frames=20, smear_frames=3.0))
    np.testing.assert_allclose(out[0], power[0, :20], rtol=1e-5)
    np.testing.assert_allclose(out[1], power[1, 5:25], rtol=1e-5)


def known(targets):
    return {"targets": targets, "target_mask": np.ones_like(targets)}


def test_frames_are_mixed_as_their_clips_are():
    targets = np.eye(16, dtype=np.float32)
    frames = {"frame_targets": targets[:, None].repeat(5, 1), "frame_mask": np.ones((16, 5, 16), np.float32)}
    _, labels = Mixup(0.7, 1.0, False)(np.ones((16, 1, 1), np.float32), {**known(targets), **frames}, SEEDS[:16])
    labels = numpy(labels)
    np.testing.assert_array_equal(labels["frame_targets"], labels["targets"][:, None].repeat(5, 1))
    np.testing.assert_array_equal(labels["frame_mask"], labels["target_mask"][:, None].repeat(5, 1))


def test_a_teacher_is_mixed_by_the_shares_of_the_sounds_even_where_targets_are_united():
    sounds, teacher = np.eye(16, dtype=np.float32), np.eye(16, dtype=np.float32)
    teacher[3] = 0
    mixup, labels = Mixup(0.7, 1.0, True), {**known(teacher), "teacher": teacher}
    in_power, in_waves = (
        mixup(sounds[:, :, None], labels, SEEDS[:16]),
        mixup.of_waveforms(sounds, labels, SEEDS[:16]),
    )
    # Each sound has a place of its own: the mixture tells its shares.
    for mixed, got in ((numpy(in_power[0])[:, :, 0], in_power[1]), (numpy(in_waves[0]) ** 2, in_waves[1])):
        share, got = mixed / mixed.sum(axis=1, keepdims=True), numpy(got["teacher"])
        deaf = share[:, 3] > 0
        assert 1 < deaf.sum() < 8 and not got[deaf].any()
        np.testing.assert_allclose(got[~deaf], share[~deaf], atol=1e-5)


def test_mixup_mixes_as_often_as_asked_and_keeps_the_example_louder():
    rows = 800
    power = np.ones((rows, 2, 2), np.float32)
    targets = np.eye(rows, dtype=np.float32)
    out, labels = numpy(Mixup(0.6, 0.5, False)(power, known(targets), SEEDS[:rows]))
    got, mask = labels["targets"], labels["target_mask"]
    np.testing.assert_allclose(out, 1, rtol=1e-5)
    assert abs((np.diag(got) < 1).mean() - 0.6) < 0.06
    assert np.diag(got).min() >= 0.5
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)
    assert (mask == 1).all()


def test_union_targets_are_whole():
    targets = np.eye(80, dtype=np.float32)
    mixup, power = Mixup(1.0, 0.5, True), np.ones((80, 1, 1), np.float32)
    got = numpy(mixup(power, known(targets), SEEDS[:80])[1])["targets"]
    assert set(np.unique(got)) == {0, 1}
    assert (got.sum(axis=1) == 2).all()


def test_mixing_never_leaves_its_group():
    power = np.ones((16, 1, 1), np.float32)
    targets = np.eye(16, dtype=np.float32)
    got = numpy(Mixup(1.0, 1.0, True)(power, known(targets), SEEDS[:16])[1])["targets"]
    assert got[:8, 8:].sum() == 0 and got[8:, :8].sum() == 0


def test_mixing_a_group_does_not_see_another():
    power = RNG.random((16, 3, 2)).astype(np.float32)
    targets = np.eye(16, dtype=np.float32)
    mixup = Mixup(1.0, 1.0, False)
    whole = numpy(mixup(power, known(targets), SEEDS[:16])[0])
    half = numpy(mixup(power[8:], known(targets[8:]), SEEDS[8:16])[0])
    np.testing.assert_allclose(whole[8:], half, rtol=1e-5)


def test_spec_augment_masks_within_its_widths():
    image = np.tile(np.linspace(0, 1, 10, dtype=np.float32)[None, None], (200, 50, 1))
    image[:, ::2] += 1
    out = numpy(SpecAugment(1, 0.2, 1, 0.3)(image, SEEDS[:200]))
    mean = image.mean(axis=(1, 2), keepdims=True)
    masked = np.isclose(out, mean, atol=1e-6)
    frames, bands = masked.all(axis=2).sum(axis=1), masked.all(axis=1).sum(axis=1)
    assert frames.max() <= 10 and frames.mean() == pytest.approx(5, abs=1)
    assert bands.max() <= 3 and bands.mean() == pytest.approx(1.5, abs=0.4)


def test_no_mask_changes_nothing():
    image = RNG.random((3, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(numpy(SpecAugment(0, 0.5, 0, 0.5)(image, SEEDS[:3])), image)


def test_masks_do_not_depend_on_the_batch():
    image = RNG.random((4, 30, 20)).astype(np.float32)
    augment = SpecAugment(2, 0.3, 2, 0.3)
    whole = numpy(augment(image, SEEDS[:4]))
    np.testing.assert_allclose(numpy(augment(image[2:3], SEEDS[2:3]))[0], whole[2], atol=1e-6)


def test_a_crop_and_masks_take_channels():
    power = RNG.random((2, 30, 4, 3)).astype(np.float32)
    start, rate, ratio = np.float32([0, 3.5]), np.float32([1.1, 1]), np.float32([1, 1.1])
    cropped = numpy(crop(power, ratio, start, rate, frames=20, smear_frames=3.0))
    masked = numpy(SpecAugment(2, 0.3, 2, 0.5)(power, SEEDS[:2]))
    for channel in range(3):
        alone = numpy(crop(power[..., channel], ratio, start, rate, frames=20, smear_frames=3.0))
        np.testing.assert_allclose(cropped[..., channel], alone, rtol=1e-5)
        alone = numpy(SpecAugment(2, 0.3, 2, 0.5)(power[..., channel], SEEDS[:2]))
        np.testing.assert_allclose(masked[..., channel], alone, atol=1e-6)


def test_waveforms_mix_with_the_partners_and_shares_of_power():
    targets = np.eye(16, dtype=np.float32)
    mixup = Mixup(0.7, 0.5, False)
    power, audio = np.ones((16, 2, 2), np.float32), RNG.standard_normal((16, 50)).astype(np.float32)
    of_power = numpy(mixup(power, known(targets), SEEDS[:16])[1])
    out, of_audio = numpy(mixup.of_waveforms(audio, known(targets), SEEDS[:16]))
    for name in of_power:
        np.testing.assert_array_equal(of_power[name], of_audio[name])
    alone = np.diag(of_audio["targets"]) == 1
    assert alone.any() and not alone.all()
    np.testing.assert_allclose(out[alone], audio[alone], rtol=1e-5)
    assert (np.abs(out - audio).max(axis=1)[~alone] > 0.01).all()


def test_a_partners_amplitude_can_be_drawn_instead_of_its_share():
    targets = np.eye(800, dtype=np.float32)
    mixup = Mixup(1.0, 0.5, False, weights=(0.2, 1.0))
    got = numpy(mixup(np.ones((800, 1, 1), np.float32), known(targets), SEEDS[:800])[1])["targets"]
    own = np.diag(got)
    amplitude = np.sqrt((1 - own) / own)
    assert amplitude.min() >= 0.2 - 1e-3 and amplitude.max() <= 1 + 1e-3
    assert amplitude.mean() == pytest.approx(0.6, abs=0.03) and amplitude.std() == pytest.approx(0.231, abs=0.02)


def test_mixed_power_can_keep_its_level():
    power = RNG.random((16, 5, 4)).astype(np.float32) * np.float32(10) ** RNG.uniform(-6, 0, (16, 1, 1))
    power = power.astype(np.float32)
    power[3] = 0
    targets = np.eye(16, dtype=np.float32)
    given = power, known(targets), SEEDS[:16]
    kept, unit = (numpy(Mixup(0.5, 0.5, True, level=level)(*given)[0]) for level in (True, False))
    level = power.mean(axis=(1, 2))
    own = np.arange(16) != 3
    np.testing.assert_allclose(kept[own].mean(axis=(1, 2)) / unit[own].mean(axis=(1, 2)), level[own], rtol=1e-4)
    got = numpy(Mixup(0.5, 0.5, True, level=True)(*given)[1])["targets"]
    alone = got.sum(axis=1) == 1
    assert alone.any()
    np.testing.assert_allclose(kept[alone], power[alone], rtol=1e-4)
    # All silence mixes to silence.
    assert (numpy(Mixup(1.0, 0.5, True, level=True)(power * 0, *given[1:])[0]) == 0).all()


def test_floors_are_drawn_as_often_and_as_high_as_asked():
    image = np.full((4000, 1, 2), 1, np.float32)
    image[:, 0, 0] = 0.4
    out = numpy(RandomFloor(0.6, 0.3)(image, SEEDS))
    np.testing.assert_allclose(out[:, 0, 1], 1, rtol=1e-6)
    floor = (0.4 - out[:, 0, 0]) / (1 - out[:, 0, 0])
    assert (floor > 1e-6).mean() == pytest.approx(0.6, abs=0.03)
    drawn = floor[floor > 1e-6]
    assert drawn.max() <= 0.3 + 1e-5 and drawn.mean() == pytest.approx(0.15, abs=0.01)
    np.testing.assert_allclose(numpy(RandomFloor(0.6, 0.3)(image[7:8], SEEDS[7:8]))[0], out[7], rtol=1e-6)
