"""Which clip of a recording is trained on."""

import numpy as np
from keras import ops

from birdtpu.ops import instances

RNG = np.random.default_rng(0)


def numpy(x):
    return ops.convert_to_numpy(x)


def test_a_case_worked_by_hand():
    # Two recordings of three clips, two species. The first has species 1: clip 2 scores it highest, though clip 0 is
    # the highest of all. The second has species 0, whose best clip is padding; of the others clip 1 is better.
    logits = np.array([[[9, 0], [0, 1], [0, 3]], [[1, 0], [2, 9], [5, 9]]], np.float32)
    present = np.array([[0, 1], [1, 0]], np.float32)
    allowed = np.array([[1, 1, 1], [1, 1, 0]], np.float32)
    assert numpy(instances.best(logits, present, allowed)).tolist() == [2, 1]


def test_without_a_known_species_all_count():
    logits = np.array([[[0, 1], [2, 0], [1, 1]]], np.float32)
    assert numpy(instances.best(logits, np.zeros((1, 2), np.float32), np.ones((1, 3), np.float32))).tolist() == [1]


def test_examples_are_independent():
    logits = RNG.normal(size=(5, 4, 3)).astype(np.float32)
    present, allowed = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]], RNG.integers(0, 2, (5, 4)).astype(np.float32)
    whole = numpy(instances.best(logits, present, allowed))
    alone = [numpy(instances.best(*(x[i : i + 1] for x in (logits, present, allowed))))[0] for i in range(5)]
    assert whole.tolist() == alone


def test_quiet_clips_are_silent_beside_their_own_recording_alone():
    noise = RNG.normal(size=(2, 3, 500))
    # The second recording is 60 dB below the first; in both clip 1 is 40 dB below clip 0.
    audio = (noise * np.array([[[1], [1e-2], [0]], [[1e-3], [1e-5], [1e-3]]]) + 5).astype(np.float32)
    got = numpy(instances.audible(audio, np.ones((2, 3), np.float32), 30.0))
    assert got.tolist() == [[1, 0, 0], [1, 0, 1]]
    assert numpy(instances.audible(audio, np.ones((2, 3), np.float32), 50.0)).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_padding_does_not_set_the_level():
    audio = np.array([[[0.01, -0.01], [1, -1]]], np.float32)
    assert numpy(instances.audible(audio, np.array([[1, 0]], np.float32), 20.0)).tolist() == [[1, 0]]


def test_all_silence_is_allowed():
    silence = np.zeros((1, 3, 4), np.int16)
    assert numpy(instances.audible(silence, np.ones((1, 3), np.float32), 60.0)).tolist() == [[1, 1, 1]]


def test_the_chosen_clip_is_taken_as_it_is():
    audio = RNG.integers(-9, 9, (3, 4, 5)).astype(np.int16)
    got = numpy(instances.take(audio, np.array([3, 0, 2], np.int32)))
    np.testing.assert_array_equal(got, audio[[0, 1, 2], [3, 0, 2]])
    assert got.dtype == np.int16
