import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from birdtpu.data import synthesis, voices
from birdtpu.errors import UserError

SMALL = {"species": 3, "recordings": 4, "soundscapes": 1, "seed": 5}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthesis") / "world"
    return folder, synthesis.synthesize(folder, **SMALL)


def test_same_seed_same_bytes_whatever_the_workers(world, tmp_path):
    synthesis.synthesize(tmp_path / "again", **SMALL, workers=1)
    assert contents(tmp_path / "again") == contents(world[0])


def test_another_seed_is_another_world(world, tmp_path):
    synthesis.synthesize(tmp_path / "other", **SMALL | {"seed": 6, "recordings": 1, "soundscapes": 0})
    assert not set(contents(tmp_path / "other").values()) & set(contents(world[0]).values())
    assert not (tmp_path / "other" / "train_soundscape_labels.csv").exists()


def test_layout_is_that_of_birdclef_2023(world):
    folder, summary = world
    table = pd.read_csv(folder / "train_metadata.csv", dtype=str, keep_default_na=False)
    assert ",".join(table.columns) == (
        "primary_label,secondary_labels,type,latitude,longitude,scientific_name,common_name,author,license,rating,url,"
        "filename"
    )
    files = {str(path.relative_to(folder / "train_audio")) for path in (folder / "train_audio").rglob("*.ogg")}
    assert files == set(table.filename) and len(table) == sum(summary["classes"].values())
    assert table.primary_label.value_counts().to_dict() == summary["classes"]
    assert (table.filename.str.split("/").str[0] == table.primary_label).all()
    assert summary["files"] == len(files) + 1


def test_matches_the_competition_table(world, shared_audio):
    real = pd.read_csv(shared_audio / "birdclef-mini" / "train_metadata.csv")
    assert list(pd.read_csv(world[0] / "train_metadata.csv").columns) == list(real.columns)


def test_audio_is_finite_and_of_the_lengths_told(world):
    folder, summary = world
    total = 0.0
    for path in folder.rglob("*.ogg"):
        audio, rate = soundfile.read(path, dtype="float32")
        assert rate == 32000 and audio.ndim == 1
        seconds = audio.size / rate
        low, high = (60, 120) if path.parent.name == "train_soundscapes" else (6, 60)
        assert low - 0.01 <= seconds <= high + 0.01
        assert np.isfinite(audio).all() and 0.05 < np.abs(audio).max() <= 1.2
        total += seconds
    assert total == pytest.approx(summary["seconds"], abs=0.1)


def test_rows_follow_from_the_events(world):
    folder, _ = world
    rows = pd.read_csv(folder / "train_soundscape_labels.csv")
    events = pd.read_csv(folder / "train_soundscape_events.csv")
    assert list(rows.columns) == synthesis.ROW_COLUMNS and list(events.columns) == synthesis.EVENT_COLUMNS
    assert (events.offset_s > events.onset_s).all() and (events.high_hz > events.low_hz).all()
    assert (folder / events.filename[0]).exists()
    for row in rows.itertuples():
        assert row.row_id == f"{row.audio_id}_{row.site}_{row.seconds}"
        shared = events.offset_s.clip(upper=row.seconds) - events.onset_s.clip(lower=row.seconds - 5)
        heard = events.species[shared >= 0.1 - 1e-9]
        assert row.birds == (" ".join(sorted(set(heard))) or "nocall")


def test_an_event_sounds_where_it_is_said_to():
    """The band of an event holds far more power inside it than just before it, in a world without noise."""
    made = voices.make_species(3, 0)
    rng = np.random.default_rng(0)
    samples, low_hz, high_hz = voices.render_phrase(made, made.songs[0], 0.0, 1.0, rng, 32000)
    power = np.abs(np.fft.rfft(samples)) ** 2
    hz = np.fft.rfftfreq(samples.size, 1 / 32000)
    inside = (hz > 0.95 * low_hz) & (hz < 1.05 * high_hz)
    assert power[inside].sum() > 0.9 * power.sum()


@pytest.mark.parametrize("index", range(len(voices.VOICES)))
@pytest.mark.parametrize("sample_rate", [16000, 48000])
def test_voices_do_not_fold_back_at_nyquist(index, sample_rate):
    made = voices.make_species(index, 1)
    for phrase in (*made.songs, made.call):
        rng = np.random.default_rng(0)
        samples, low_hz, high_hz = voices.render_phrase(made, phrase, 0.3, 1.0, rng, sample_rate)
        assert np.isfinite(samples).all() and 0 < np.abs(samples).max() < 4
        assert 400 < low_hz < high_hz <= sample_rate / 2
        power = np.abs(np.fft.rfft(samples)) ** 2
        below = np.fft.rfftfreq(samples.size, 1 / sample_rate) < 0.5 * low_hz
        assert power[below].sum() < 0.01 * power.sum()


def test_classes_are_unbalanced_and_places_shared(tmp_path):
    summary = synthesis.synthesize(tmp_path / "w", species=4, recordings=12, soundscapes=0)
    sizes = sorted(summary["classes"].values())
    assert sizes[-1] == 12 and sizes[0] in (4, 5)
    table = pd.read_csv(tmp_path / "w" / "train_metadata.csv")
    groups = table.groupby(["author", "latitude", "longitude"]).size()
    assert groups.max() >= 3
    assert (table.groupby("primary_label").latitude.nunique() >= 3).all()


def test_a_hundred_species_have_names_of_their_own():
    made = [voices.make_species(i, 0) for i in range(100)]
    for field in ("code", "scientific_name", "common_name"):
        assert len({getattr(one, field) for one in made}) == 100


def test_pages_keep_a_valid_checksum(tmp_path):
    audio = np.random.default_rng(0).normal(size=64000).astype("float32") * 0.1
    synthesis._write_ogg(tmp_path / "a.ogg", audio, 32000, 77)
    data = (tmp_path / "a.ogg").read_bytes()
    # The checksum of a page, bit by bit as RFC 3533 tells it.
    end = 27 + data[26] + sum(data[27 : 27 + data[26]])
    assert int.from_bytes(data[14:18], "little") == 77
    register = 0
    for byte in data[:22] + bytes(4) + data[26:end]:
        register ^= byte << 24
        for _ in range(8):
            register = ((register << 1) ^ (0x04C11DB7 if register >> 31 else 0)) & 0xFFFFFFFF
    assert register == int.from_bytes(data[22:26], "little")
    assert soundfile.info(str(tmp_path / "a.ogg")).frames == 64000


def test_a_made_world_is_left_as_it_is(world):
    folder, summary = world
    before = (folder / "train_metadata.csv").stat().st_mtime_ns
    assert synthesis.synthesize(folder, **SMALL) == summary == json.loads((folder / "synthesis.json").read_text())
    assert (folder / "train_metadata.csv").stat().st_mtime_ns == before


def test_other_content_is_never_overwritten(world, tmp_path):
    with pytest.raises(UserError, match="give a new folder"):
        synthesis.synthesize(world[0], **SMALL | {"seed": 9})
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="give a new folder"):
        synthesis.synthesize(tmp_path, **SMALL)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize("damage", ["", "[]", "{", "\udcff"])
def test_a_folder_whose_summary_is_damaged_holds_something_else(tmp_path, damage):
    (tmp_path / "synthesis.json").write_bytes(damage.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="holds something else already; give a new folder"):
        synthesis.synthesize(tmp_path, **SMALL)


@pytest.mark.parametrize("wrong", [{"species": 1}, {"recordings": 0}, {"sample_rate": 8000}, {"seed": -1}])
def test_arguments_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        synthesis.synthesize(tmp_path / "w", **SMALL | wrong)
    with pytest.raises(UserError, match="local folder"):
        synthesis.synthesize("gs://bucket/world", **SMALL)
