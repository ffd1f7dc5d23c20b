import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtpu.data import order


def make(recordings, sources=None, repeats=1, sections=None, shards=6):
    """A plan with a row for each entry of `recordings`, and its shards."""
    count = len(recordings)
    plan = pd.DataFrame(
        {
            "section": np.arange(count) if sections is None else sections,
            "record": [f"XC{recording}/{i:05d}" for i, recording in enumerate(recordings)],
            "repeats": repeats,
            "source": "labelled" if sources is None else sources,
        }
    )
    return plan, np.arange(count) * 7 % shards


def recordings_of(plan, index):
    return plan["record"].str.split("/").str[0].to_numpy()[index]


def groups(values, before, size=8):
    """`values` cut into groups that are counted over the whole stream, of which `before` precede."""
    return np.split(values, np.arange(-before % size, len(values), size))


plans = st.lists(st.integers(0, 30), min_size=1, max_size=120)


@settings(max_examples=100, deadline=None)
@given(plans, st.integers(0, 4), st.integers(0, 2**31), st.integers(0, 3))
def test_every_section_comes_exactly_as_often_as_it_repeats(recordings, epoch, seed, repeats):
    plan, shard = make(recordings, repeats=repeats + np.arange(len(recordings)) % 2)
    index, occurrence = order.epoch_rows(plan, shard, seed=seed, epoch=epoch)
    assert len(index) == order.samples_per_epoch(plan)
    assert np.array_equal(np.bincount(index, minlength=len(plan)), plan["repeats"])
    assert len(set(zip(index, occurrence, strict=True))) == len(index)
    assert np.all(occurrence < plan["repeats"].to_numpy()[index])


@settings(max_examples=200, deadline=None)
@given(plans, st.integers(0, 9), st.integers(0, 2**31))
def test_a_group_holds_a_recording_once_wherever_it_can(recordings, epoch, seed):
    plan, shard = make(recordings)
    index, _ = order.epoch_rows(plan, shard, seed=seed, epoch=epoch)
    heard = groups(recordings_of(plan, index), epoch * len(plan))
    whole = sum(len(group) == 8 for group in heard)
    for recording, count in zip(*np.unique(recordings_of(plan, index), return_counts=True), strict=True):
        most = max(np.sum(group == recording) for group in heard)
        assert most <= max(1, -(-count // whole)) if whole else most <= count


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=16, max_size=120), st.integers(0, 9))
def test_sources_are_dealt_evenly(rows, epoch):
    plan, shard = make([r for r, _ in rows], ["pseudo" if pseudo else "labelled" for _, pseudo in rows])
    index, _ = order.epoch_rows(plan, shard, seed=1, epoch=epoch)
    pseudo = [np.sum(group == "pseudo") for group in groups(plan["source"].to_numpy()[index], epoch * len(plan))]
    whole = pseudo[1:-1]  # the first and the last may be short
    assert not whole or max(whole) - min(whole) <= 1


def test_recordings_of_both_sources_stay_apart():
    rng = np.random.default_rng(0)
    recordings = np.repeat(np.arange(60), 8)
    plan, shard = make(recordings, np.where(rng.random(480) < 0.4, "pseudo", "labelled"))
    for epoch in range(5):
        index, _ = order.epoch_rows(plan, shard, seed=3, epoch=epoch)
        assert all(len(set(group)) == 8 for group in recordings_of(plan, index).reshape(-1, 8))


def test_groups_are_whole_across_blocks():
    plan, shard = make(np.arange(403) % 210, shards=50)
    for epoch in range(8):
        index, _ = order.epoch_rows(plan, shard, seed=0, epoch=epoch, block_shards=5)
        heard = groups(recordings_of(plan, index), epoch * len(plan))
        assert [len(set(group)) for group in heard] == [len(group) for group in heard]


def test_a_block_holds_few_shards():
    plan, shard = make(np.arange(800), shards=40)
    index, _ = order.epoch_rows(plan, shard, seed=0, epoch=0, block_shards=4)
    # Ten blocks of 80 rows, which fill whole groups.
    assert all(len(set(block)) == 4 for block in shard[index].reshape(10, 80))


def test_a_section_takes_its_rows_in_turn():
    sections = np.repeat(np.arange(30), np.arange(30) % 4 + 1)
    plan, shard = make(np.arange(len(sections)), sections=sections)
    for first in (0, 5):
        epochs = [set(order.epoch_rows(plan, shard, seed=0, epoch=first + i)[0]) for i in range(12)]
        # Twelve epochs are a whole number of turns of 1, 2, 3 and 4 rows.
        for section, rows in enumerate(np.split(np.arange(len(sections)), np.flatnonzero(np.diff(sections)) + 1)):
            heard = [epoch & set(rows) for epoch in epochs]
            assert all(len(one) == 1 for one in heard), section
            assert all(set().union(*heard[i : i + len(rows)]) == set(rows) for i in range(12 - len(rows)))


def test_epochs_and_seeds_differ_and_repeat():
    plan, shard = make(np.arange(200) // 3)
    one, again, later, other = (
        order.epoch_rows(plan, shard, seed=seed, epoch=epoch)[0] for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert np.array_equal(one, again)
    # A random order agrees with another in one place on average.
    assert np.sum(one == later) < 10 and np.sum(one == other) < 10 and np.sum(later == other) < 10


def test_every_row_may_stand_anywhere():
    plan, shard = make(np.arange(64))
    places = np.array([np.argsort(order.epoch_rows(plan, shard, seed=0, epoch=epoch)[0]) for epoch in range(400)])
    # The mean of 400 even draws from 0..63: 31.5 with standard error 0.92.
    assert np.all(np.abs(places.mean(0) - 31.5) < 4.5 * 0.92)
    # Any two rows share a group of 8 in 7 of 63 epochs: 44.4 of 400 with standard error 6.3.
    together = sum(epoch[:, None] // 8 == epoch[None, :] // 8 for epoch in places)[np.triu_indices(64, 1)]
    assert np.all(np.abs(together - 44.4) < 5 * 6.3)


def test_seeds_depend_on_all_they_name():
    base = {"row": np.array([5]), "occurrence": np.array([0]), "seed": 1, "epoch": 2}
    seeds = [order.example_seeds(**base)] + [order.example_seeds(**{**base, name: base[name] + 1}) for name in base]
    assert len({int(seed[0]) for seed in seeds}) == 5
    assert seeds[0].dtype == np.int32


@given(
    st.integers(1, 2000),
    st.integers(0, 2000),
    st.integers(1, 2000),
    st.integers(1, 600),
    st.integers(-(2**31), 2**31 - 1),
)
def test_clips_lie_where_they_may(length, start, section, clip, seed):
    start, end = np.array([start % length]), np.array([min(start % length + section, length)])
    for seeds in (None, np.array([seed], np.int32)):
        (first,) = order.clip_starts(start, end, np.array([length]), clip, seeds)
        if length < clip:
            assert 0 <= first < length and (seeds is not None or first == 0)
            continue
        assert 0 <= first <= length - clip
        if end - start >= clip:
            assert start <= first <= end - clip
        else:
            assert first <= start and end <= first + clip
        if seeds is None and start + clip <= length:
            assert first == start


@pytest.mark.parametrize(("section", "low", "high"), [((100, 900), 100, 600), ((400, 500), 200, 400), ((0, 50), 0, 0)])
def test_clip_starts_are_even(section, low, high):
    count = 20000
    start, end, length = (np.full(count, value) for value in (*section, 1000))
    firsts = order.clip_starts(start, end, length, 300, np.arange(count, dtype=np.int32))
    assert firsts.min() == low and firsts.max() == high
    if high > low:
        spread = (high - low + 1) / np.sqrt(12 * count)
        assert abs(firsts.mean() - (low + high) / 2) < 5 * spread


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 90), st.sampled_from([1, 2, 3]), st.integers(0, 5), st.integers(2, 30))
def test_pseudo_rows_of_their_own_shards_are_dealt_evenly_to_every_group(labelled, times, epoch, shards):
    """`times` pseudo-labelled rows for each labelled one: every group of 8 has its share, rounded up or down."""
    count = labelled * (1 + times)
    plan, _ = make(np.arange(count), np.where(np.arange(count) < labelled, "labelled", "pseudo"))
    shard = np.where(np.arange(count) < labelled, np.arange(count) % shards, 100 + np.arange(count) % 17)
    streams = [order.epoch_rows(plan, shard, seed=2, epoch=epoch + i, block_shards=4)[0] for i in (0, 1)]
    assert all(sorted(index) == list(range(count)) for index in streams)
    pseudo = plan["source"].to_numpy()[np.concatenate(streams)] == "pseudo"
    share = 8 * times / (1 + times)
    for group in groups(pseudo, epoch * count):
        if len(group) == 8:
            # One more or less where a block's rows or an epoch's are no multiple of a group.
            assert np.floor(share) - 1 <= group.sum() <= np.ceil(share) + 1


@pytest.mark.parametrize(("labelled", "shards"), [(400, (23, 60)), (403, (23, 60)), (97, (5, 5)), (1000, (3, 200))])
def test_half_and_half_is_four_and_four(labelled, shards):
    """In the group that two epochs share too, whose parts are of two orders."""
    own = np.arange(2 * labelled) < labelled
    plan, _ = make(np.arange(2 * labelled), np.where(own, "labelled", "pseudo"))
    number = np.arange(2 * labelled)
    shard = np.where(own, number % shards[0], 1000 + number % shards[1])
    index = np.concatenate([order.epoch_rows(plan, shard, seed=0, epoch=epoch)[0] for epoch in range(5)])
    pseudo = plan["source"].to_numpy()[index[: len(index) // 8 * 8]].reshape(-1, 8) == "pseudo"
    assert set(pseudo.sum(axis=1)) == {4}
