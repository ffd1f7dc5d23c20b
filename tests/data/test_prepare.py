import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from birdtpu import storage
from birdtpu.data import prepare as preparing
from birdtpu.data import records, shards
from birdtpu.data.prepare import prepare
from birdtpu.data.preparing import building, decoding, journal
from birdtpu.data.preparing.pool import Crash, Pool
from birdtpu.data.tables import ANNOTATIONS, RECORDINGS, SPECIES, Tables, load_tables
from birdtpu.errors import UserError

# Test modules are no package; this one keeps its helpers beside it.
sys.path.append(str(Path(__file__).parent))
from mutations import make_folder

RATE = 8000
OPTIONS = {"sample_rate": RATE, "record_seconds": 0.5, "workers": 2, "shard_bytes": 20_000}


class InlinePool:
    """The pool's face without its processes, for tests of what happens around it; its results come in disorder."""

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, function, jobs):
        jobs = list(jobs)
        for i in random.Random(len(jobs)).sample(range(len(jobs)), len(jobs)):
            try:
                result = function(jobs[i])
            except OSError as error:
                result = Crash(str(error))
            yield i, result


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(preparing, "Pool", InlinePool)
    # A disk that is waited for a thousand times says nothing about these tests' claims.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # One after the other, so that a kill at the n-th step is always the same kill.
    monkeypatch.setattr(building, "_COPIERS", 1)


def sound(seed, seconds, rate=RATE, peak=0.5):
    samples = np.random.default_rng(seed).uniform(-1, 1, round(seconds * rate))
    return (samples / np.abs(samples).max() * peak).astype(np.float32)


def write(path, seed, seconds, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.rint(sound(seed, seconds, rate) * 32767).astype(np.int16), rate)


def tables_of(folder, data_set="home", annotations=()):
    """The tables of a folder per species, files named XC<number> or not."""
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    ids = [Path(path).stem if Path(path).stem.startswith("XC") else "" for path in paths]
    columns = {name: [""] * len(paths) for name in RECORDINGS}
    columns |= {name: [np.nan] * len(paths) for name in ("latitude", "longitude", "rating", "duration_seconds")}
    columns |= {"recording": ids, "path": paths, "data_set": [data_set] * len(paths)}
    columns["primary_label"] = [Path(path).parent.name for path in paths]
    species = sorted(set(columns["primary_label"]))
    names = {"code": species, "scientific_name": "", "common_name": ""}
    return Tables(
        pd.DataFrame(columns)[list(RECORDINGS)],
        pd.DataFrame(annotations, columns=list(ANNOTATIONS)),
        pd.DataFrame(names)[list(SPECIES)],
    )


@pytest.fixture
def folder(tmp_path):
    """Ten recordings of two species, of several lengths and formats."""
    home = tmp_path / "audio"
    for i in range(6):
        write(home / "owl" / f"XC{i}.wav", i, 0.3 + 0.37 * i)
    for i in range(3):
        write(home / "wren" / f"note {i}.flac", 10 + i, 0.8 + 0.1 * i, rate=11025)
    write(home / "wren" / "XC9.ogg", 20, 1.7)
    return home


def run(folder, output, tables=None, **options):
    return prepare(tables or tables_of(folder), {"home": folder}, output, **{**OPTIONS, **options})


def snapshot(output):
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def read_records(output):
    """Every record by its id, read by offset."""
    manifest = shards.load_manifest(output)
    found = {}
    for row in shards.load_records(output).itertuples():
        data = (output / shards.FOLDER / manifest["shards"][row.shard]["name"]).read_bytes()
        framed = data[row.offset : row.offset + row.length]
        found[row.record] = {**records.parse_numpy(records.unframe(framed)), "row": row}
    return found


def test_records_joined_are_the_recording(folder, tmp_path, inline):
    report = run(folder, tmp_path / "out")
    found = read_records(tmp_path / "out")
    assert report.recordings == 10
    assert report.records == len(found) == sum(s["records"] for s in shards.load_manifest(tmp_path / "out")["shards"])
    for i in range(6):
        whole = soundfile.read(folder / "owl" / f"XC{i}.wav", dtype="int16")[0]
        parts = [found[f"XC{i}/{k:05d}"] for k in range(-(-len(whole) // 4000))]
        np.testing.assert_array_equal(np.concatenate([part["audio"] for part in parts]), whole)
        lengths = {len(part["audio"]) for part in parts[:-1]}
        assert len(lengths) <= 1
        assert len(parts[-1]["audio"]) <= max(lengths, default=4000) <= 4000
        starts = np.cumsum([0] + [len(part["audio"]) for part in parts[:-1]]) / RATE
        np.testing.assert_allclose([part["row"].start_seconds for part in parts], starts, atol=1e-12)
        np.testing.assert_allclose([part["start_seconds"] for part in parts], starts, rtol=1e-7)
        np.testing.assert_allclose([part["row"].seconds for part in parts], [len(p["audio"]) / RATE for p in parts])
        assert {part["recording"] for part in parts} == {f"XC{i}"}


def test_tables_are_filled_in(folder, tmp_path, inline):
    boxes = [("", "wren/note 1.flac", 0.1, 0.5, np.nan, np.nan, "wren", "positive")]
    boxes += [("XC3", "owl/XC3.wav", 0.0, np.nan, 100.0, 900.0, "owl", "negative")]
    run(folder, tmp_path / "out", tables_of(folder, annotations=boxes))
    tables = load_tables(str(tmp_path / "out"))
    assert (
        list(tables.recordings["recording"].str[:4]) == ["XC0", "XC1", "XC2", "XC3", "XC4", "XC5", "XC9"] + ["pcm-"] * 3
    )
    np.testing.assert_allclose(tables.recordings["duration_seconds"][:6], [0.3 + 0.37 * i for i in range(6)], atol=1e-4)
    note = tables.recordings.loc[tables.recordings["path"] == "wren/note 1.flac", "recording"].item()
    assert set(tables.annotations["recording"]) == {note, "XC3"}
    files = pd.read_csv(tmp_path / "out" / "files.csv", keep_default_na=False)
    assert list(files["outcome"]) == ["ok"] * 10
    assert list(files["records"]) == list(np.ceil(files["seconds"] / 0.5))


def test_same_bytes_whatever_the_workers(folder, tmp_path):
    for workers in (1, 2, 3):
        run(folder, tmp_path / str(workers), workers=workers)
    first = snapshot(tmp_path / "1")
    assert len(shards.load_manifest(tmp_path / "1")["shards"]) > 3
    assert first == snapshot(tmp_path / "2") == snapshot(tmp_path / "3")
    assert shards.verify(tmp_path / "1") == []


def test_same_bytes_wherever_the_input_lies_and_whatever_its_order(folder, tmp_path, inline):
    run(folder, tmp_path / "one")
    moved = shutil.copytree(folder, tmp_path / "else" / "where")
    tables = tables_of(moved)
    shuffled = Tables(tables.recordings.sample(frac=1, random_state=0), tables.annotations, tables.species)
    run(moved, tmp_path / "two", shuffled)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_a_second_run_does_nothing(folder, tmp_path, inline, monkeypatch):
    first = run(folder, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(decoding, "decode", None)
    second = run(folder, tmp_path / "out")
    assert second.reused == 10
    assert (second.recordings, second.records, second.seconds) == (first.recordings, first.records, first.seconds)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded."""
    names = []

    def noting(job, decode=decoding.decode):
        names.append(Path(job.path).name)
        return decode(job)

    monkeypatch.setattr(preparing, "Pool", InlinePool)
    monkeypatch.setattr(decoding, "decode", noting)
    return names


@pytest.mark.parametrize("change", ["new", "changed", "gone", "label", "shard_bytes", "touched", "missing shard"])
def test_a_second_run_redoes_only_what_changed(folder, tmp_path, decoded, change):
    run(folder, tmp_path / "out")
    decoded.clear()
    options, expected, tables = {}, [], None
    if change == "new":
        write(folder / "owl" / "XC30.wav", 30, 1.1)
        expected = ["XC30.wav"]
    elif change == "changed":
        write(folder / "owl" / "XC2.wav", 31, 0.9)
        expected = ["XC2.wav"]
    elif change == "gone":
        (folder / "owl" / "XC2.wav").unlink()
    elif change == "label":
        tables = tables_of(folder)
        tables.recordings.loc[0, "primary_label"] = "wren"
    elif change == "shard_bytes":
        options["shard_bytes"] = 50_000
    elif change == "touched":
        (folder / "owl" / "XC2.wav").touch()
    elif change == "missing shard":
        path = tmp_path / "out" / shards.FOLDER / shards.load_manifest(tmp_path / "out")["shards"][1]["name"]
        path.unlink()
        table = shards.load_records(tmp_path / "out")
        hit = set(table.loc[table["shard"] == 1, "recording"])
        rows = load_tables(str(tmp_path / "out")).recordings
        expected = [Path(path).name for path in rows.loc[rows["recording"].isin(hit), "path"]]
    run(folder, tmp_path / "out", tables, **options)
    assert sorted(decoded) == sorted(expected)
    run(folder, tmp_path / "fresh", tables, **options)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")


def test_an_xeno_canto_number_given_later_is_taken(folder, tmp_path, inline):
    run(folder, tmp_path / "out")
    tables = tables_of(folder)
    tables.recordings.loc[tables.recordings["path"] == "wren/note 1.flac", "recording"] = "XC77"
    run(folder, tmp_path / "out", tables)
    run(folder, tmp_path / "fresh", tables)
    assert "XC77/00000" in read_records(tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")


class Killed(BaseException):
    """Stands for SIGKILL: nothing that tidies up after an error may catch it."""


STEPS = [
    (storage, "write_bytes"),
    (storage, "write_text"),
    (storage, "remove"),
    (shutil, "rmtree"),
    (Path, "rename"),
    (Path, "unlink"),
    (shards, "write_at"),
    (journal.Journal, "note"),
    (decoding, "decode"),
]


def kill_at(monkeypatch, moment):
    """Raise Killed before or after the n-th step; every file that was being appended to is left torn."""
    count = 0

    def wrap(owner, name):
        original = getattr(owner, name)

        def step(*args, **kwargs):
            nonlocal count
            count += 1
            if count == moment:
                raise Killed
            before = {}
            if name in ("write_at", "note"):
                path = args[0] if name == "write_at" else args[0]._path
                before = {path: path.stat().st_size}
            result = original(*args, **kwargs)
            count += 1
            if count == moment:
                for path, size in before.items():
                    if path.stat().st_size > size:
                        os.truncate(path, (size + path.stat().st_size) // 2)
                raise Killed
            return result

        monkeypatch.setattr(owner, name, step)

    for owner, name in STEPS:
        wrap(owner, name)


def run_killed_at_every_step(folder, output, start, **options):
    """Kill a run at each of its steps in turn, repeat it, and give what each repetition leaves."""
    moment, finished = 0, False
    while not finished:
        moment += 1
        shutil.rmtree(output, ignore_errors=True)
        start(output)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moment)
            try:
                run(folder, output, **options)
                finished = True
            except Killed:
                pass
        run(folder, output, **options)
        yield moment, snapshot(output)


def test_killed_at_any_step_and_repeated_gives_the_same_bytes(folder, tmp_path, inline):
    for path in sorted(folder.rglob("*"))[-6:]:
        if path.is_file():
            path.unlink()
    write(folder / "wren" / "copy.wav", 1, 0.67)
    (folder / "wren" / "empty.wav").write_bytes(b"")
    run(folder, tmp_path / "straight")
    straight = snapshot(tmp_path / "straight")
    moment = 0
    for moment, found in run_killed_at_every_step(folder, tmp_path / "out", start=lambda output: None):
        assert found == straight, f"killed at step {moment}"
    assert moment > 60


def test_an_update_killed_at_any_step_and_repeated_gives_the_same_bytes(folder, tmp_path, inline):
    for path in sorted(folder.rglob("*"))[-6:]:
        if path.is_file():
            path.unlink()
    run(folder, tmp_path / "old")
    write(folder / "owl" / "XC1.wav", 50, 0.9)
    write(folder / "owl" / "XC15.wav", 51, 0.9)
    run(folder, tmp_path / "straight")
    straight = snapshot(tmp_path / "straight")
    begin = lambda output: shutil.copytree(tmp_path / "old", output)  # noqa: E731
    for moment, found in run_killed_at_every_step(folder, tmp_path / "out", begin):
        assert found == straight, f"killed at step {moment}"


def test_new_labels_alone_killed_at_any_step_and_repeated_give_the_same_bytes(folder, tmp_path, inline):
    run(folder, tmp_path / "old")
    tables = tables_of(folder)
    tables.recordings.loc[0, "primary_label"] = "wren"
    run(folder, tmp_path / "straight", tables)
    straight = snapshot(tmp_path / "straight")
    begin = lambda output: shutil.copytree(tmp_path / "old", output)  # noqa: E731
    for moment, found in run_killed_at_every_step(folder, tmp_path / "out", begin, tables=tables):
        assert found == straight, f"killed at step {moment}"


def test_input_that_changed_between_kill_and_repetition(folder, tmp_path, decoded, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 50)
        with pytest.raises(Killed):
            run(folder, tmp_path / "out")
    lines = (tmp_path / "out" / journal.WORK / "journal.jsonl").read_text().splitlines()[1:]
    noted = {Path(json.loads(line)[0]).name for line in lines}
    assert len(noted) > 4
    write(folder / "owl" / "XC0.wav", 60, 0.4)
    decoded.clear()
    run(folder, tmp_path / "out")
    assert noted & set(decoded) == {"XC0.wav"}
    run(folder, tmp_path / "fresh")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")


def start_process(folder, output, workers=2, **environment):
    """`prepare` in a process of its own, to be killed or starved."""
    tables_of(folder).recordings.to_json(output.parent / "tables.json")
    code = (
        "import sys, numpy, pandas\n"
        "from birdtpu.data.prepare import prepare\n"
        "from birdtpu.data.tables import Tables, ANNOTATIONS, SPECIES\n"
        "from birdtpu.errors import UserError\n"
        f"rows = pandas.read_json({str(output.parent / 'tables.json')!r}, dtype=False)\n"
        "empty = lambda columns: pandas.DataFrame(columns=list(columns))\n"
        "tables = Tables(rows, empty(ANNOTATIONS), empty(SPECIES))\n"
        f"try: prepare(tables, {{'home': {str(folder)!r}}}, {str(output)!r}, "
        f"sample_rate={RATE}, record_seconds=0.5, workers={workers}, shard_bytes=20_000)\n"
        "except UserError as error: sys.exit(f'UserError: {error}')\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    _, error = process.communicate(timeout=120)
    return process.returncode, error


def test_sigkill_at_three_moments_and_repeated_gives_the_same_bytes(folder, tmp_path):
    assert finish(start_process(folder, tmp_path / "straight")) == (0, "")
    for wait in (0.0, 0.1, 0.2):
        process = start_process(folder, tmp_path / "out")
        until = time.monotonic() + 60
        while not (tmp_path / "out" / journal.WORK).exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(wait)
        process.kill()
        finish(process)
    assert finish(start_process(folder, tmp_path / "out")) == (0, "")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "straight")


def test_a_full_disk_is_one_line_and_loses_nothing(folder, tmp_path, decoded):
    limited = start_process(
        folder,
        tmp_path / "out",
        **fault(tmp_path, "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (12_000, 12_000))"),
    )
    code, error = finish(limited)
    assert code == 1
    assert error.startswith("UserError")
    assert len(error.splitlines()) == 1
    assert "make room and run the same command again" in error
    report = run(folder, tmp_path / "out")
    assert report.reused == 10 - len(decoded) > 0
    run(folder, tmp_path / "straight")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "straight")


def fault(tmp_path, code):
    """The environment in which every new Python process runs `code` first."""
    (tmp_path / "fault").mkdir(exist_ok=True)
    (tmp_path / "fault" / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(tmp_path / "fault")}


CRASHING = """
import os, sys
from birdtpu.data import audio
def stream(path, *args, _stream=audio.stream, **options):
    if "XC3" in path: os.kill(os.getpid(), {signal})
    if "XC4" in path: raise MemoryError("no memory for this one")
    return _stream(path, *args, **options)
audio.stream = stream
"""


@pytest.mark.parametrize("by", [signal.SIGSEGV, signal.SIGKILL])
def test_a_file_that_kills_its_worker_is_named_and_the_rest_goes_on(folder, tmp_path, monkeypatch, by):
    with monkeypatch.context() as patch:
        for name, value in fault(tmp_path, CRASHING.format(signal=int(by))).items():
            patch.setenv(name, value)
        report = run(folder, tmp_path / "out")
    assert report.failures == [("home/owl/XC3.wav", "crash"), ("home/owl/XC4.wav", "crash")]
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert by.name in failures["detail"][0]
    assert "MemoryError" in failures["detail"][1]
    assert report.recordings == 8
    # A crash is no lasting verdict: the next run tries again.
    assert run(folder, tmp_path / "out").reused == 8
    run(folder, tmp_path / "fresh")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")


def test_a_pool_outlives_its_workers():
    jobs = ["1 + 1", "__import__('os').abort()", "2 + 2", "__import__('os')._exit(3)", "1 / 0", "3 + 3"]
    with Pool(2) as pool:
        found = dict(pool.run(eval, jobs))
        assert [found[0], found[2], found[5]] == [2, 4, 6]
        assert "SIGABRT" in found[1].detail
        assert "exit code 3" in found[3].detail
        assert "ZeroDivisionError" in found[4].detail
        assert dict(pool.run(eval, ["7"] * 5)) == dict.fromkeys(range(5), 7)
        assert list(pool.run(eval, ["None"])) == [(0, None)]
        assert list(pool.run(eval, [])) == []


def test_decoders_do_not_talk_over_the_progress_bar(capfd):
    with Pool(1) as pool:
        list(pool.run(eval, ["__import__('os').write(2, b'Warning: Xing stream size off')"]))
    assert capfd.readouterr().err == ""


def test_workers_start_light():
    code = (
        "import sys; from birdtpu.data.preparing import decoding, pool;"
        "sys.exit(str({'tensorflow', 'keras', 'jax', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules) or ''))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr.strip() == ""
    )


def test_duplicates_are_kept_once_and_listed(folder, tmp_path, inline):
    shutil.copy(folder / "wren" / "note 0.flac", folder / "owl" / "twin.flac")
    shutil.copy(folder / "owl" / "XC1.wav", folder / "wren" / "another name.wav")
    write(folder / "wren" / "XC2.wav", 99, 0.6)
    boxes = [("", "wren/another name.wav", 0.1, 0.2, np.nan, np.nan, "owl", "positive")]
    boxes += [("XC1", "owl/XC1.wav", 0.1, 0.2, np.nan, np.nan, "owl", "positive")]
    report = run(folder, tmp_path / "out", tables_of(folder, annotations=boxes))
    assert report.recordings == 10
    assert report.duplicates == [
        ("home/wren/XC2.wav", "home/owl/XC2.wav"),
        ("home/wren/another name.wav", "home/owl/XC1.wav"),
        ("home/wren/note 0.flac", "home/owl/twin.flac"),
    ]
    tables = load_tables(str(tmp_path / "out"))
    assert tables.annotations[["recording", "path"]].values.tolist() == [["XC1", "owl/XC1.wav"]]
    labels = tables.recordings.set_index("path")[["primary_label", "secondary_labels"]]
    assert labels.loc[["owl/XC1.wav", "owl/XC2.wav", "owl/twin.flac"]].values.tolist() == [["owl", "wren"]] * 3
    assert labels["secondary_labels"].value_counts().to_dict() == {"": 7, "wren": 3}
    assert run(folder, tmp_path / "out", tables_of(folder, annotations=boxes)).reused == 13
    # Without its original, a duplicate is a recording of its own.
    (folder / "owl" / "twin.flac").unlink()
    run(folder, tmp_path / "out")
    run(folder, tmp_path / "fresh")
    assert "wren/note 0.flac" in set(load_tables(str(tmp_path / "out")).recordings["path"])
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")


def test_a_duplicate_gives_its_original_all_its_labels(tmp_path, inline):
    for name in ("a/1.wav", "b/1.wav", "c/1.wav", "d/2.wav"):
        write(tmp_path / "audio" / name, int(name[2]), 0.6)
    (tmp_path / "audio" / "c" / "1.wav").write_bytes(b"")
    tables = tables_of(tmp_path / "audio")
    tables.recordings["primary_label"] = ["", "b", "c", "d"]
    tables.recordings["secondary_labels"] = ["x", "y;x", "z", "x"]
    run(tmp_path / "audio", tmp_path / "out", tables)
    found = load_tables(str(tmp_path / "out")).recordings[["path", "primary_label", "secondary_labels"]]
    assert found.values.tolist() == [["a/1.wav", "b", "x;y"], ["d/2.wav", "d", "x"]]


def test_an_id_made_of_the_audio_does_not_depend_on_the_container_or_the_records(tmp_path, inline):
    write(tmp_path / "a" / "x" / "one.wav", 0, 1.3)
    write(tmp_path / "b" / "y" / "two.flac", 0, 1.3)
    run(tmp_path / "a", tmp_path / "out a")
    run(tmp_path / "b", tmp_path / "out b", record_seconds=0.2)
    first, second = (load_tables(str(tmp_path / name)).recordings["recording"] for name in ("out a", "out b"))
    assert first.tolist() == second.tolist()


def test_bad_files_are_named_and_the_rest_goes_on(folder, tmp_path, inline):
    (folder / "owl" / "empty.wav").write_bytes(b"")
    (folder / "owl" / "page.mp3").write_bytes(b"<html>not found</html>")
    write(folder / "owl" / "short.wav", 5, 0.02)
    soundfile.write(folder / "owl" / "silent.wav", np.zeros(4000, np.float32), RATE)
    tables = tables_of(folder, annotations=[("", "owl/page.mp3", 0, 1, np.nan, np.nan, "owl", "positive")])
    (folder / "owl" / "XC1.wav").unlink()
    report = run(folder, tmp_path / "out", tables, min_seconds=0.1)
    assert report.failures == [
        ("home/owl/XC1.wav", "unreadable"),
        ("home/owl/empty.wav", "empty file"),
        ("home/owl/page.mp3", "not audio"),
        ("home/owl/short.wav", "too short"),
        ("home/owl/silent.wav", "constant"),
    ]
    assert (report.recordings, report.lost_annotations) == (9, 1)
    named = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert list(zip(named["data_set"] + "/" + named["path"], named["reason"], strict=True)) == report.failures
    assert run(folder, tmp_path / "out", tables, min_seconds=0.1).reused == 13


def test_a_damaged_file_that_gives_audio_is_named_too(folder, tmp_path, inline):
    data = (folder / "owl" / "XC5.wav").read_bytes()
    (folder / "owl" / "XC5.wav").write_bytes(data[:9001])
    report = run(folder, tmp_path / "out")
    ((key, text),) = report.warnings
    assert key == "home/owl/XC5.wav"
    assert str(tmp_path) not in text
    assert run(folder, tmp_path / "out").warnings == report.warnings


def test_audio_above_full_scale_is_not_clipped(tmp_path, inline):
    (tmp_path / "audio").mkdir()
    loud = sound(0, 1.2, peak=3.0)
    soundfile.write(tmp_path / "audio" / "XC1.wav", loud, RATE, subtype="FLOAT")
    run(tmp_path / "audio", tmp_path / "out")
    found = [record for _, record in sorted(read_records(tmp_path / "out").items())]
    back = np.concatenate([record["audio"] * record["gain"] for record in found])
    np.testing.assert_allclose(back, loud, atol=0.51 * 3 / 32767)


def test_a_recording_too_long_to_hold_gives_the_same_records(folder, tmp_path, inline, monkeypatch):
    run(folder, tmp_path / "held")
    monkeypatch.setattr(decoding, "HELD_SAMPLES", 5000)
    run(folder, tmp_path / "streamed")
    assert snapshot(tmp_path / "held") == snapshot(tmp_path / "streamed")


@pytest.mark.parametrize("length", [1, 7, 100, 1000])
def test_recut_keeps_every_sample(length):
    samples = np.arange(537, dtype=np.float32)
    for blocks in ([537], [100] * 6, [1] * 537, [300, 0, 237]):
        cut = np.split(samples, np.cumsum(blocks)[:-1])
        parts = list(decoding.recut(cut, length))
        assert [len(part) for part in parts[:-1]] == [length] * (len(parts) - 1)
        np.testing.assert_array_equal(np.concatenate(parts), samples)


def test_stretches_are_the_fewest_and_equal():
    for samples in range(1, 300):
        for most in (1, 2, 7, 50, 299):
            length = decoding.stretch_samples(samples, most)
            count = -(-samples // length)
            assert length <= most
            assert count == -(-samples // most)


def test_progress_counts_files(folder, tmp_path, inline):
    calls = []
    run(folder, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls == [(i, 10) for i in range(11)]


def wrong(name, folder, output):
    """A call that cannot work, by what is wrong with it."""
    tables = tables_of(folder)
    if name == "settings":
        run(folder, output)
        return lambda: run(folder, output, sample_rate=16000)
    if name == "settings of a killed run":
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, 50)
            with pytest.raises(Killed):
                run(folder, output)
        return lambda: run(folder, output, record_seconds=3)
    if name == "other content":
        output.mkdir()
        (output / "thesis.txt").write_text("x")
        return lambda: run(folder, output)
    if name == "no such folder":
        return lambda: run(folder / "nowhere", output, tables)
    if name == "no folder given":
        return lambda: prepare(tables, {"other": folder}, output, **OPTIONS)
    if name == "empty tables":
        return lambda: run(folder, output, Tables(tables.recordings[:0], tables.annotations, tables.species))
    if name == "twice":
        both = pd.concat([tables.recordings, tables.recordings[:1]])
        return lambda: run(folder, output, Tables(both, tables.annotations, tables.species))
    if name == "no audio":
        for path in folder.rglob("*.*"):
            path.write_bytes(b"")
        return lambda: run(folder, output)
    if name == "remote":
        return lambda: run(folder, "gs://bucket/folder", tables)
    if name == "damaged manifest":
        run(folder, output)
        (output / shards.MANIFEST).write_text("{}")
        return lambda: run(folder, output)
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("settings", "sample_rate 8000, not 16000; choose another output folder"),
        ("settings of a killed run", "record_seconds 0.5, not 3.0; choose another output folder"),
        ("other content", "choose an empty folder"),
        ("no such folder", "give the folder that its table's paths start from"),
        ("no folder given", "no audio folder is given"),
        ("empty tables", "no recording in the tables"),
        ("twice", "stands twice"),
        ("no audio", "no recording is left, all 10 files failed"),
        ("remote", "local folder"),
        ("damaged manifest", "damaged"),
    ],
)
def test_what_cannot_work_says_so_in_one_line(folder, tmp_path, inline, name, message):
    with pytest.raises(UserError, match=message) as caught:
        wrong(name, folder, tmp_path / "out")()
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_shard_stops_an_update_and_says_how_to_mend_it(folder, tmp_path, inline):
    run(folder, tmp_path / "out")
    path = sorted((tmp_path / "out" / shards.FOLDER).iterdir())[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    write(folder / "owl" / "XC40.wav", 40, 0.7)
    with pytest.raises(UserError, match="delete this file and prepare again") as caught:
        run(folder, tmp_path / "out")
    assert path.name in str(caught.value)
    path.unlink()
    run(folder, tmp_path / "out")
    run(folder, tmp_path / "fresh")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")


def test_two_runs_in_one_folder_are_refused(folder, tmp_path, inline):
    def again(done, total):
        if not done:
            with pytest.raises(UserError, match="another run"):
                run(folder, tmp_path / "out")

    run(folder, tmp_path / "out", progress=again)


def test_real_recordings_come_through(shared_audio, tmp_path, inline):
    """Every odd format decodes or is named; what was saved of bad files carries its warning."""
    for home in ("formats", "bad"):
        folder = shared_audio / home
        report = run(folder, tmp_path / home, sample_rate=32000, record_seconds=10, shard_bytes=10_000_000)
        assert "crash" not in dict(report.failures).values()
        assert shards.verify(tmp_path / home) == []
        assert report.recordings > 0


def test_good_files_come_through_and_broken_ones_are_named(shared_audio, tmp_path):
    good, broken = make_folder(tmp_path / "audio", shared_audio)
    report = run(tmp_path / "audio", tmp_path / "out", record_seconds=5, shard_bytes=1_000_000)
    named = {key.removeprefix("home/") for key, _ in [*report.failures, *report.warnings]}
    assert named == set(broken)
    assert (len(good), len(broken)) == (300, 100)
    assert report.recordings == 400 - len(report.failures)
    assert journal.CRASH not in dict(report.failures).values()
    assert shards.verify(tmp_path / "out") == []
