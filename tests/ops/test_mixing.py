"""Mixing against NumPy twins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from birdtpu.ops import mixing


def numpy(x):
    return ops.convert_to_numpy(x)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 0.9999), min_size=24, max_size=24))
def test_partners_stay_in_their_group_and_are_others(units):
    partner = numpy(mixing.partners(np.array(units, np.float32), 24))
    rows = np.arange(24)
    assert (partner // 8 == rows // 8).all()
    assert (partner != rows).all()


def test_every_other_row_of_the_group_can_be_a_partner():
    units = np.random.default_rng(0).random(8000).astype(np.float32)
    partner = numpy(mixing.partners(units, 8000))
    assert set((partner - np.arange(8000)) % 8) == set(range(1, 8))


def test_a_batch_of_broken_groups_is_refused():
    with pytest.raises(ValueError, match="groups of 8"):
        mixing.partners(np.zeros(12, np.float32), 12)


def test_blend_matches_its_formula():
    power = np.random.default_rng(1).random((8, 3, 2)).astype(np.float32)
    partner, share = np.roll(np.arange(8, dtype=np.int32), 3), np.linspace(0.5, 1, 8, dtype=np.float32)
    twin = np.stack([share[i] * power[i] + (1 - share[i]) * power[partner[i]] for i in range(8)])
    np.testing.assert_allclose(numpy(mixing.blend(power, partner, share)), twin, rtol=1e-6)


def test_unit_energy_is_independent_of_the_recorder():
    power = np.random.default_rng(2).random((2, 5, 4)).astype(np.float32)
    power[1] = power[0] * 1e-6
    out = numpy(mixing.unit_energy(power))
    np.testing.assert_allclose(out[0], out[1], rtol=1e-5)
    np.testing.assert_allclose(out.mean(axis=(1, 2)), 1, rtol=1e-5)
    assert np.isfinite(numpy(mixing.unit_energy(np.zeros((1, 2, 2), np.float32)))).all()


@pytest.mark.parametrize("union", [False, True])
def test_targets_match_a_slow_twin(union):
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 2, (8, 5)).astype(np.float32)
    mask = rng.integers(0, 2, (8, 5)).astype(np.float32)
    partner = np.roll(np.arange(8, dtype=np.int32), 1)
    share = np.array([1, 1, 0.6, 0.7, 0.8, 0.9, 0.5, 1], np.float32)
    got_targets, got_mask = (numpy(x) for x in mixing.mix_targets(targets, mask, partner, share, union))
    for i in range(8):
        j = partner[i]
        for c in range(5):
            a, b = targets[i, c] * mask[i, c], targets[j, c] * mask[j, c]
            if share[i] == 1:
                target, known = targets[i, c], mask[i, c]
            else:
                target = max(a, b) if union else share[i] * a + (1 - share[i]) * b
                known = float((mask[i, c] and mask[j, c]) or a > 0 or b > 0)
            assert got_targets[i, c] == pytest.approx(target, abs=1e-6)
            assert got_mask[i, c] == known


def test_blended_waveforms_have_their_shares_of_the_power():
    rng = np.random.default_rng(4)
    audio = rng.standard_normal((8, 20000)).astype(np.float32) * np.float32(10.0) ** rng.uniform(-4, 0, (8, 1))
    partner, share = np.roll(np.arange(8, dtype=np.int32), 3), np.linspace(0.5, 1, 8, dtype=np.float32)
    out = numpy(mixing.blend_waveforms(audio.astype(np.float32), partner, share)).astype(np.float64)
    level = np.sqrt((audio.astype(np.float64) ** 2).mean(axis=1))
    unit = audio / level[:, None]
    for i in range(8):
        twin = np.sqrt(share[i]) * unit[i] + np.sqrt(1 - share[i]) * unit[partner[i]]
        np.testing.assert_allclose(out[i], twin * level[i], atol=1e-5 * level[i])
        # Two sounds that know nothing of each other: powers add up to the example's own.
        assert (out[i] ** 2).mean() == pytest.approx(level[i] ** 2, rel=0.03)
        assert (out[i] * unit[i]).mean() ** 2 / level[i] ** 2 == pytest.approx(share[i], abs=0.03)


def test_in_a_silent_example_the_partner_has_its_own_level():
    audio = np.random.default_rng(5).standard_normal((8, 400)).astype(np.float32) * 0.01
    audio[0] = 0
    partner, share = np.roll(np.arange(8, dtype=np.int32), 1), np.full(8, 0.75, np.float32)
    share[4] = 1
    out = numpy(mixing.blend_waveforms(audio, partner, share))
    np.testing.assert_allclose(out[0], 0.5 * audio[partner[0]], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(out[4], audio[4], rtol=1e-5)
    assert (numpy(mixing.blend_waveforms(np.zeros_like(audio), partner, share)) == 0).all()


def test_channels_are_brought_to_unit_energy_each():
    power = np.random.default_rng(6).random((2, 5, 4, 3)).astype(np.float32) * np.float32([1, 1e-3, 1e3])
    np.testing.assert_allclose(numpy(mixing.unit_energy(power)).mean(axis=(1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize("union", [False, True])
def test_a_soft_target_beside_an_unknown_one_is_known_by_as_much(union):
    """Of 0.01 beside an unknown class, all but 0.01 stays unknown; beside a known one all is known."""
    targets, mask = np.zeros((8, 3), np.float32), np.ones((8, 3), np.float32)
    targets[0], mask[1] = [0.01, 0.7, 1.0], [0, 0, 0]
    partner = np.array([1, 0, 3, 2, 5, 4, 7, 6], np.int32)
    got = mixing.mix_targets(targets, mask, partner, np.full(8, 0.5, np.float32), union)
    np.testing.assert_allclose(numpy(got[0])[0], targets[0] if union else targets[0] / 2, rtol=1e-6)
    np.testing.assert_allclose(numpy(got[1])[:2], [targets[0]] * 2, rtol=1e-6)
    partner[0] = 2
    assert (numpy(mixing.mix_targets(targets, mask, partner, np.full(8, 0.5, np.float32), union)[1])[0] == 1).all()


def test_a_teachers_embeddings_match_a_slow_twin():
    rng = np.random.default_rng(8)
    teacher = rng.standard_normal((16, 5)).astype(np.float32)
    teacher[[2, 3, 11]] = 0
    partner = numpy(mixing.partners(rng.random(16).astype(np.float32), 16))
    share = np.where(np.arange(16) % 3 == 0, 1, rng.uniform(0.5, 1, 16)).astype(np.float32)
    got = numpy(mixing.mix_teacher(teacher, partner, share))
    missing = 0
    for i, j in enumerate(partner):
        if share[i] == 1:
            twin = teacher[i]
        elif teacher[i].any() and teacher[j].any():
            twin = share[i] * teacher[i] + (1 - share[i]) * teacher[j]
        else:
            twin, missing = np.zeros(5), missing + 1
        np.testing.assert_allclose(got[i], twin, atol=1e-6)
    assert missing >= 3
