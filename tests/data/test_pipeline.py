import itertools

import numpy as np
import pandas as pd
import pytest

from birdtpu.data import companions, order, pipeline, records, shards
from birdtpu.data.plan import dense_targets
from birdtpu.data.shelf import named_errors, open_shelf
from birdtpu.errors import UserError
from birdtpu.species import ClassList

RATE = 1000
CLASSES = ClassList(("amerob", "barswa", "nocall", "123"))
RECORDING_SECONDS = [0.4, 1.0, 1.7, 2.0, 2.0, 3.1]


def write_folder(path, names, rate=RATE, count=3):
    """A prepared folder with one record a recording; sample i of recording k is 100 k + i, so that clips tell."""
    writer = shards.ShardWriter(path / shards.FOLDER, count)
    rows = []
    for number, (name, seconds) in enumerate(names):
        samples = (100 * number + np.arange(round(seconds * rate))).astype(np.float32) / 32768
        # One record above full scale has a gain of its own.
        framed = records.frame(records.serialize(f"{name}/00000", name, 0.0, samples * (40 if number == 5 else 1)))
        shard = shards.shard_of(f"{name}/00000", count)
        rows.append((f"{name}/00000", name, shard, writer.append(shard, framed), len(framed), 0.0, seconds))
    table = pd.DataFrame(rows, columns=shards.RECORD_COLUMNS).to_csv(index=False).encode()
    manifest = shards.make_manifest({"sample_rate": rate}, writer.describe(), {"records.csv": table})
    (path / "records.csv").write_bytes(table)
    (path / shards.MANIFEST).write_bytes(manifest)
    return str(path)


NAMES = [(f"XC{k}", RECORDING_SECONDS[k % 6]) for k in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("prepared"), NAMES)


@pytest.fixture(scope="module")
def plan():
    """A row a recording, but two for those of 3.1 s (one section) and two sections for those of 2 s."""
    rows = []
    for number, (name, seconds) in enumerate(NAMES):
        cuts = {3.1: [(0.0, 1.5), (1.5, 3.1)], 2.0: [(0.0, 1.0), (1.0, 2.0)]}.get(seconds, [(0.0, seconds)])
        for part, (start, end) in enumerate(cuts):
            section = number * 2 + (part if seconds == 2.0 else 0)
            targets, unknown = [("amerob", ""), ("barswa;123", "amerob"), ("", ""), ("123", "*"), ("", "*;barswa")][
                number % 5
            ]
            rows.append((section, f"{name}/00000", start, end, 1 + number % 3, "labelled"))
            rows[-1] += (0.5 + number % 2, targets, unknown)
    columns = ["section", "record", "start_seconds", "end_seconds", "repeats", "source", "weight", "targets", "unknown"]
    # The rows' numbers are not their positions: a plan's rows of one role are only some of it.
    table = pd.DataFrame(rows, columns=columns).assign(role="train", within="")
    return table.assign(row=100 + 3 * np.arange(len(table)))


def take(folder, plan, count=None, **options):
    options = {"clip_samples": 600, "batch_size": 8, "seed": 3} | options
    dataset = pipeline.batches(folder, plan, CLASSES, **options)
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_keep_the_contract(folder, plan):
    dataset = pipeline.batches(folder, plan, CLASSES, clip_samples=600, batch_size=8)
    expected = {
        "audio": ((8, 600), "float32"),
        "targets": ((8, 4), "float32"),
        "target_mask": ((8, 4), "float32"),
        "weight": ((8,), "float32"),
        "row": ((8,), "int32"),
        "seed": ((8,), "int32"),
    }
    assert {name: (tuple(s.shape), s.dtype.name) for name, s in dataset.element_spec.items()} == expected
    (batch,) = take(folder, plan, 1)
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == expected


def test_same_batches_whatever_the_threads(folder, plan):
    one = take(folder, plan, 12, threads=1)
    assert_same(one, take(folder, plan, 12, threads=4))
    assert_same(one, take(folder, plan, 12))


def test_a_start_at_step_n_is_the_rest_of_the_run(folder, plan):
    whole = take(folder, plan, steps=20)
    assert len(whole) == 20
    for start in (1, 7, 19):
        assert_same(whole[start:], take(folder, plan, steps=20, start_step=start))
    assert_same(take(folder, plan, 2, start_step=10**6), take(folder, plan, 2, start_step=10**6))


def test_a_dataset_begins_anew_each_time(folder, plan):
    dataset = pipeline.batches(folder, plan, CLASSES, clip_samples=600, batch_size=8, steps=3)
    assert_same(list(dataset.as_numpy_iterator()), list(dataset.as_numpy_iterator()))


def test_memory_gives_the_same_batches(folder, plan):
    assert_same(take(folder, plan, 12), take(folder, plan, 12, cache=True))
    assert_same(take(folder, plan, training=False), take(folder, plan, training=False, cache=True))


def test_integers_times_gain_are_the_audio(folder, plan):
    for batch, integers in zip(take(folder, plan, 12), take(folder, plan, 12, pcm16=True), strict=True):
        assert integers["audio"].dtype == np.int16 and integers["audio_gain"].shape == (8,)
        np.testing.assert_array_equal(batch["audio"], integers["audio"] * integers["audio_gain"][:, None])


def test_an_epoch_is_the_order_of_its_plan(folder, plan):
    count = order.samples_per_epoch(plan)
    stream = np.concatenate([batch["row"] for batch in take(folder, plan, -(-3 * count // 8))])
    table = shards.load_records(folder).set_index("record")
    shard = table.loc[plan["record"], "shard"].to_numpy()
    for epoch in range(3):
        index, _ = order.epoch_rows(plan, shard, seed=3, epoch=epoch)
        np.testing.assert_array_equal(stream[epoch * count : (epoch + 1) * count], plan["row"].to_numpy()[index])


def test_clips_are_what_lies_in_their_section(folder, plan):
    by_row = plan.set_index("row")
    shorter = longer = 0
    for batch in take(folder, plan, 30):
        for audio, row in zip(batch["audio"], batch["row"], strict=True):
            start, end = by_row.loc[row, ["start_seconds", "end_seconds"]].to_numpy(float) * RATE
            number = int(by_row.loc[row, "record"][2:-6])
            length = round(NAMES[number][1] * RATE)
            scale = 40 if number == 5 else 1
            samples = audio * 32768 / scale - 100 * number
            first = round(samples[0])
            expected = (first + np.arange(600)) % length if length < 600 else first + np.arange(600)
            # Half a step of the gain of the loud record is 0.06 of its samples' steps.
            np.testing.assert_allclose(samples, expected, atol=0.06 if scale > 1 else 0)
            if length >= 600:
                assert start <= first and first + 600 <= end
                longer += 1
            else:
                shorter += 1
    assert shorter > 5 and longer > 100


def test_a_clip_longer_than_its_section_reaches_beyond_it(folder, plan):
    two = plan[plan["record"] == "XC3/00000"].reset_index(drop=True)
    for batch in take(folder, two, 10, clip_samples=1500):
        firsts = np.rint(batch["audio"][:, 0] * 32768 - 300)
        assert np.all((firsts >= 0) & (firsts <= 500))
        assert len(set(firsts)) > 1


def test_labels_are_joined(folder, plan):
    expected = {
        0: ([1, 0, 0, 0], [1, 1, 1, 1]),
        1: ([0, 1, 0, 1], [0, 1, 1, 1]),
        2: ([0, 0, 0, 0], [1, 1, 1, 1]),
        3: ([0, 0, 0, 1], [0, 0, 0, 1]),
        4: ([0, 0, 0, 0], [0, 1, 0, 0]),
    }
    by_row = plan.set_index("row")
    for batch in take(folder, plan, 10):
        for i, row in enumerate(batch["row"]):
            number = int(by_row.loc[row, "record"][2:-6])
            targets, mask = expected[number % 5]
            assert batch["targets"][i].tolist() == targets
            assert batch["target_mask"][i].tolist() == mask
            assert batch["weight"][i] == 0.5 + number % 2


def test_seeds_are_of_the_row_and_not_of_its_place(folder, plan):
    seeds = {}
    for batch in take(folder, plan, 40):
        for row, seed in zip(batch["row"], batch["seed"], strict=True):
            seeds.setdefault(int(row), []).append(int(seed))
    drawn = [seed for of_row in seeds.values() for seed in of_row]
    assert len(set(drawn)) == len(drawn)
    in_twos = [int(seed) for batch in take(folder, plan, 160, batch_size=2) for seed in batch["seed"]]
    assert in_twos == [int(seed) for batch in take(folder, plan, 40) for seed in batch["seed"]]


def test_evaluation_takes_each_row_once_in_order(folder, plan):
    heard = take(folder, plan, training=False)
    assert len(heard) == -(-len(plan) // 8)
    rows, weight = (np.concatenate([batch[name] for batch in heard]) for name in ("row", "weight"))
    np.testing.assert_array_equal(rows[: len(plan)], plan["row"])
    np.testing.assert_array_equal(weight[: len(plan)], plan["weight"].astype(np.float32))
    assert len(weight) % 8 == 0 and len(weight) > len(plan) and not weight[len(plan) :].any()
    first = np.concatenate([batch["audio"][:, 0] for batch in heard])[: len(plan)] * 32768
    number = plan["record"].str[2:-6].astype(int).to_numpy()
    expected = (100 * number + np.rint(plan["start_seconds"] * RATE)) * np.where(number == 5, 40, 1)
    np.testing.assert_allclose(first, expected, atol=2.3)  # half a step of the loud record
    assert_same(heard[2:4], take(folder, plan, training=False, start_step=2, steps=4))


def test_examples_are_independent(folder, plan):
    """The loudest record, 40 times the others, changes nothing beside it."""
    quiet = plan[plan["record"] != "XC5/00000"]
    with_loud = {
        row: audio for b in take(folder, plan, training=False) for row, audio in zip(b["row"], b["audio"], strict=True)
    }
    for batch in take(folder, quiet, training=False):
        for row, audio in zip(batch["row"], batch["audio"], strict=True):
            np.testing.assert_array_equal(audio, with_loud[row])


def test_folders_add_up(folder, plan, tmp_path):
    for part, names in (("a", NAMES[:17]), ("b", NAMES)):  # of what lies in both, the first counts
        (tmp_path / part).mkdir()
        write_folder(tmp_path / part, names)
    both = take([str(tmp_path / "a"), str(tmp_path / "b")], plan, training=False)
    assert_same(both, take(folder, plan, training=False))


def test_errors_say_what_to_do(folder, plan, tmp_path):
    with pytest.raises(UserError, match="XC99/00000 is in none of"):
        take(folder, plan.assign(record="XC99/00000"))
    for nothing in (plan.iloc[:0], plan.assign(repeats=0)):
        with pytest.raises(UserError, match="no row"):
            take(folder, nothing)
    other = write_folder(tmp_path, NAMES[:2], rate=2000)
    with pytest.raises(UserError, match=r"1000 Hz, but .* at 2000 Hz"):
        take([folder, other], plan)
    with pytest.raises(UserError, match="not in the class list"):
        take(folder, plan.assign(targets="gretit1"))


@pytest.mark.parametrize("at", [3, 9, 200, -2])
@pytest.mark.parametrize("cache", [False, True])
def test_a_flipped_bit_is_named(plan, tmp_path, at, cache):
    folder = write_folder(tmp_path, NAMES)
    row = shards.load_records(folder).set_index("record").loc["XC16/00000"]
    path = tmp_path / shards.FOLDER / shards.shard_name(row["shard"], 3)
    data = bytearray(path.read_bytes())
    data[row["offset"] + at % row["length"]] ^= 1
    path.write_bytes(data)
    with (
        pytest.raises(UserError, match=f"{path.name}: .*at byte {row['offset']};") as caught,
        named_errors(folder),
    ):
        take(folder, plan, training=False, cache=cache)
    assert "\n" not in str(caught.value)


def test_a_short_or_missing_shard_is_named(plan, tmp_path):
    folder = write_folder(tmp_path, NAMES)
    last = shards.load_records(folder).query("shard == 1").iloc[-1]
    path = tmp_path / shards.FOLDER / shards.shard_name(1, 3)
    path.write_bytes(path.read_bytes()[: last["offset"]])
    with (
        pytest.raises(UserError, match=f"{path.name}: ends before the record at byte {last['offset']}"),
        named_errors(folder),
    ):
        take(folder, plan, training=False)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: is missing"), named_errors(folder):
        take(folder, plan, training=False)


def test_several_clips_follow_each_other_and_what_is_repeated_is_masked(folder, plan):
    lengths = {f"{name}/00000": round(seconds * RATE) for name, seconds in NAMES}
    record = plan.set_index("row")["record"]
    starts = set()
    for batch in take(folder, plan, 30, clips=3, clip_samples=400):
        assert batch["audio"].shape == (8, 3, 400) and batch["clip_mask"].shape == (8, 3)
        for audio, mask, row in zip(batch["audio"], batch["clip_mask"], batch["row"], strict=True):
            number = int(record[row][2:-6])
            samples = np.rint(audio.ravel() * 32768 / (40 if number == 5 else 1)).astype(int) - 100 * number
            length, first = lengths[record[row]], int(samples[0])
            starts.add((number, first))
            # Sample i of a recording is its number: the clips hold it from the first on, end to start where it ends.
            np.testing.assert_array_equal(samples, (first + np.arange(1200)) % length)
            assert first + 400 <= max(length, 400 + first if length <= 400 else 0)
            assert mask.tolist() == [float(i == 0 or first + 400 * i < length) for i in range(3)]
    assert len(starts) > 60


def test_several_clips_start_at_the_front_outside_training(folder, plan):
    for batch in take(folder, plan, training=False, clips=2, clip_samples=400):
        for audio, row in zip(batch["audio"], batch["row"], strict=True):
            start, number = (plan.set_index("row").loc[row, key] for key in ("start_seconds", "record"))
            number = int(number[2:-6])
            scale = 40 if number == 5 else 1
            length = NAMES[number][1] * RATE
            expected = min(start * RATE, max(length - 400, 0))
            assert round(float(audio[0, 0] * 32768 / scale)) - 100 * number == round(expected)


@pytest.fixture(scope="module")
def boxes(plan):
    """Two boxes of record 3 (2 s) and one of record 0 (0.4 s); the rest speaks of whole recordings."""
    rows = plan[plan["section"].isin([0, 6, 7, 8])].reset_index(drop=True)
    rows.loc[:, ["source", "targets", "unknown", "repeats"]] = ["timed", "123", "*", 1]
    times = {"XC0/00000": [(0.1005, 0.2005)], "XC3/00000": [(0.5005, 0.9005), (0.8005, 1.2005)]}
    for name, spans in times.items():
        at = rows.index[rows["record"] == name]
        for i, (start, end) in zip(at, spans, strict=True):
            rows.loc[i, ["start_seconds", "end_seconds"]] = [start, end]
    rows.loc[rows.index[rows["record"] == "XC3/00000"][1], ["targets", "unknown"]] = ["", "*;barswa"]
    rows.loc[rows["record"] == "XC4/00000", "source"] = "labelled"
    return rows


def test_frames_know_what_annotations_say(folder, boxes):
    seen = 0
    for batch in take(folder, boxes, 20, clip_samples=600, frame_hop=50, batch_size=8):
        assert batch["frame_targets"].shape == batch["frame_mask"].shape == (8, 13, 4)
        for audio, row, targets, mask in zip(
            batch["audio"], batch["row"], batch["frame_targets"], batch["frame_mask"], strict=True
        ):
            record = boxes.set_index("row").loc[row, "record"]
            number = int(record[2:-6])
            first = round(float(audio[0] * 32768)) - 100 * number
            time = (first + 50 * np.arange(13)) / RATE
            twin_targets, twin_mask = np.zeros((13, 4)), np.zeros((13, 4))
            if number == 0:
                # 0.4 s of a clip of 0.6 s: what is repeated behind them is unknown.
                inside = (np.arange(13) * 50 < 400) & (time % 0.4 >= 0.1005) & (time % 0.4 < 0.2005)
                twin_targets[inside, 3] = twin_mask[inside, 3] = 1
                assert inside.sum() == 2
            if number == 3:
                yes, no = (time >= 0.5005) & (time < 0.9005), (time >= 0.8005) & (time < 1.2005)
                twin_targets[yes, 3] = twin_mask[yes, 3] = twin_mask[no, 1] = 1
            np.testing.assert_array_equal(targets, twin_targets)
            np.testing.assert_array_equal(mask, twin_mask)
            seen += number == 3 and twin_mask.sum() > 0
    assert seen > 10


@pytest.mark.parametrize("unknown", ["*", ""])
def test_what_sings_within_a_box_sings_nowhere_else_in_it(folder, plan, unknown):
    """As `annotated_sections` says of a box from 0.2 to 1.8 s and one of another species from 0.6 to 0.9 s in it."""
    rows = plan[plan["record"] == "XC3/00000"].assign(source="timed", repeats=1)
    rows = rows.assign(start_seconds=[0.2, 0.6], end_seconds=[1.8, 0.9], unknown=unknown, within=["barswa", ""])
    rows["targets"] = ["123;barswa", "123;barswa"]
    outer, inner = (CLASSES.index(code) for code in ("123", "barswa"))
    seen = set()
    for batch in take(folder, rows, 4, clip_samples=600, frame_hop=50):
        for audio, targets, mask in zip(batch["audio"], batch["frame_targets"], batch["frame_mask"], strict=True):
            time = (round(float(audio[0] * 32768)) - 300 + 50 * np.arange(13)) / RATE
            both, one = (time >= 0.6) & (time < 0.9), (time >= 0.2) & (time < 1.8)
            np.testing.assert_array_equal(targets[:, inner], both)
            np.testing.assert_array_equal(targets[:, outer], one)
            # Where the labels are complete it is absent around its box, else unknown.
            np.testing.assert_array_equal(mask[:, inner], both if unknown else one)
            seen.add(both.any())
    assert True in seen


def test_of_silent_recordings_every_frame_is_known(folder, boxes):
    rows = boxes.assign(targets=boxes["targets"].where(boxes["source"] == "timed", ""))
    rows["unknown"] = rows["unknown"].where(rows["source"] == "timed", "")
    silent = 0
    for batch in take(folder, rows, 10, clip_samples=600, frame_hop=50):
        for row, targets, mask in zip(batch["row"], batch["frame_targets"], batch["frame_mask"], strict=True):
            if rows.set_index("row").loc[row, "record"] == "XC4/00000":
                assert not targets.any() and mask.min() == 1
                silent += 1
    assert silent


def test_a_loss_on_frames_needs_annotations(folder, plan):
    with pytest.raises(UserError, match=r"train\.frame_loss: no recording of this part has annotations with times"):
        take(folder, plan, 1, frame_hop=50)


def test_partners_are_other_recordings_of_the_same_species(folder, plan):
    by_row = plan.set_index("row")
    distinct = set()
    for batch in take(folder, plan, 20, partner=True):
        assert batch["partner_audio"].shape == (8, 600) and batch["partner_audio"].dtype == np.float32
        for audio, row in zip(batch["partner_audio"], batch["row"], strict=True):
            # Sample i of recording k is 100 k + i: a step of one, but where a short record begins again.
            samples = np.rint(audio * 32768).astype(int)
            scaled = np.rint(samples / 40).astype(int)
            fits = []
            for number, (name, seconds) in enumerate(NAMES):
                values = scaled if number == 5 else samples
                place, length = values - 100 * number, round(seconds * RATE)
                if (place >= 0).all() and (place < length).all() and (np.diff(place) % length == 1).all():
                    fits.append((name, tuple(place[:1])))
            rows = [by_row[by_row["record"] == f"{name}/00000"]["targets"].tolist() for name, _ in fits]
            assert any(by_row.loc[row, "targets"] in targets for targets in rows)
            own = by_row.loc[row, "record"].split("/")[0]
            assert any(name != own for name, _ in fits)
            distinct.add(fits[0])
    assert len(distinct) > 100


def test_partners_lack_what_the_row_says_is_absent(folder, plan):
    """A partner in which another species may sing would make the row's own label of that species wrong."""
    # Recordings of 0.4 s, whose samples tell them apart.
    unknown = {0: "", 6: "barswa", 12: "", 18: "*;barswa", 24: "*"}
    partners = {0: {12}, 6: {0, 12}, 12: {0}, 18: {0, 12}, 24: {0, 6, 12, 18}}
    rows = plan[plan["record"].isin([f"XC{k}/00000" for k in unknown])]
    rows = rows.assign(targets="amerob", unknown=list(unknown.values()))
    heard = {k: set() for k in unknown}
    for batch in take(folder, rows, 40, partner=True):
        for partner, row in zip(batch["partner_audio"], batch["row"], strict=True):
            own = int(rows.set_index("row").loc[row, "record"][2:-6])
            heard[own].add(round(float(partner.min() * 32768)) // 100)
    assert heard == partners


def test_a_row_alone_is_its_own_partner(folder, plan):
    alone = plan.assign(targets=plan["targets"].where(plan["section"] != 0, "nocall"))
    seen = 0
    for batch in take(folder, alone, 20, partner=True):
        for partner, row in zip(batch["partner_audio"], batch["row"], strict=True):
            if row == alone["row"].iloc[0]:
                assert set(np.rint(partner * 32768).astype(int)) <= set(range(400))
                seen += 1
    assert seen


def test_background_comes_from_its_own_folder(folder, plan, tmp_path):
    # Records of 900 and 100 samples; the second is numbered from 100 on.
    sounds = write_folder(tmp_path / "sounds", [("N0", 0.9), ("N1", 0.1)])
    count = 0
    batches = take(folder, plan, 40, background=sounds)
    for audio in np.concatenate([batch["background_audio"] for batch in batches]):
        samples = np.rint(audio * 32768).astype(int)
        short = samples.max() < 200 and samples.min() >= 100
        place, length = (samples - 100, 100) if short else (samples, 900)
        np.testing.assert_array_equal(place, (place[0] + np.arange(600)) % length)
        count += short
    # A tenth of the time is in the short one.
    assert 10 <= count <= 60
    assert_same(batches[5:], take(folder, plan, 35, background=sounds, start_step=5))
    for before, after in zip(take(folder, plan, 3), batches, strict=False):
        np.testing.assert_array_equal(before["audio"], after["audio"])


def test_background_is_none_of_what_is_held_out(folder, plan, tmp_path):
    sounds = write_folder(tmp_path / "sounds", [("N0", 0.9), ("N1", 0.1)])
    for batch in take(folder, plan, 5, background=sounds, held_out={"N0"}):
        # Of the second record alone, which is numbered from 100 on.
        assert set(np.rint(batch["background_audio"] * 32768).astype(int).ravel()) == set(range(100, 200))
    with pytest.raises(UserError, match=r"background: all recordings of .*sounds are held out"):
        take(folder, plan, 1, background=sounds, held_out={"N0", "N1", "XC1"})


def test_background_of_another_rate_is_named(folder, plan, tmp_path):
    sounds = write_folder(tmp_path / "sounds", [("N0", 0.9)], rate=2000)
    with pytest.raises(UserError, match=r"background: .* is prepared at 2000 Hz, the data at 1000 Hz"):
        take(folder, plan, 1, background=sounds)


def test_pseudo_rows_have_the_targets_of_their_clip(folder, plan):
    pseudo = pd.Series(np.arange(len(plan)) % 7 == 0)
    soft = np.random.default_rng(0).random((40, 4)).astype(np.float16)
    soft[::2, 1] = np.nan
    number = np.where(pseudo, np.arange(len(plan)) * 7 % 40, 0)
    mixed = plan.assign(source=np.where(pseudo, "pseudo", "labelled"), unknown=plan["unknown"].where(~pseudo, ""))
    mixed = mixed.assign(targets=plan["targets"].where(~pseudo, pd.Series(number).astype(str)))
    with pytest.raises(UserError, match="some rows have pseudo-labels: give the file"):
        take(folder, mixed, 1)
    by_row = pd.Series(np.arange(len(plan)), index=plan["row"])
    seen = 0
    plain = dense_targets(plan, CLASSES)
    for batch in take(folder, mixed, 12, soft=soft):
        for i, row in enumerate(batch["row"]):
            position = by_row[row]
            targets, mask = (part[position] for part in plain)
            if pseudo[position]:
                said = soft[number[position]].astype(np.float32)
                targets, mask = np.nan_to_num(said), np.isfinite(said)
                seen += 1
            np.testing.assert_array_equal(batch["targets"][i], targets)
            np.testing.assert_array_equal(batch["target_mask"][i], mask)
        assert batch["targets"].dtype == batch["target_mask"].dtype == np.float32
    assert seen > 8


def test_the_partner_of_a_pseudo_row_is_its_own_stretch(folder, plan):
    """What is alike in soft targets is unknown, so no other recording can be a partner."""
    mixed = plan[plan["record"] != "XC5/00000"].reset_index(drop=True)
    mixed = mixed.assign(source="pseudo", targets=[str(i) for i in range(len(mixed))], unknown="")
    soft = np.full((len(mixed), 4), 0.5, np.float16)
    for batch in take(folder, mixed, 6, partner=True, soft=soft):
        for audio, row in zip(batch["partner_audio"], batch["row"], strict=True):
            number = int(mixed.set_index("row").loc[row, "record"][2:-6])
            samples = audio * 32768 - 100 * number
            assert samples.min() >= 0 and samples.max() <= 1000 * NAMES[number][1]


def test_a_pseudo_labelled_row_has_no_species_to_share(folder, plan):
    # The number of its clip may look like a species code.
    numbered = plan.assign(source="labelled", targets="123")
    numbered.loc[0, "source"] = "pseudo"
    shelf = open_shelf(folder)
    place = shelf.table.index.get_indexer(numbered["record"])
    draw = companions._partners(numbered, shelf, place, 600)
    assert {int(draw(0, seed)[0]) for seed in range(50)} == {place[0]}
    assert place[0] not in {int(draw(1, seed)[0]) for seed in range(200)} and len({*place}) > 1
