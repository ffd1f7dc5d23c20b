"""How fast `prepare` is beside the decoder alone, and how much memory a day of audio costs it.

    python benchmarks/prepare.py --json prepare.json

Speed: files are decoded, cut and written by `prepare`, and decoded (and resampled) by soundfile (and soxr) alone in as
many processes; the peers' processes are up before their clock starts, those of `prepare` are not. The two take turns;
medians count. Memory: the peak of the largest process on a file of an hour and of a day. Killed, this script goes on
where its JSON ends.
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr

# Every process of a pool imports this script; what the workers do not need is imported where it is used.
from birdtpu.data.preparing.pool import Pool

REAL = Path(__file__).resolve().parents[2] / "shared" / "audio" / "birdclef-mini" / "train_audio"
RATE = 32000
CASES = {
    "ogg": RATE,
    "mp3": RATE,
    "wav": RATE,
    "ogg, resampled": 44100,
    "mp3, resampled": 44100,
    "wav, resampled": 44100,
}


def read_alone(path: str) -> int:
    """What a worker of the peer does with a file."""
    samples, rate = soundfile.read(path, dtype="float32")
    return len(samples if rate == RATE else soxr.resample(samples, rate, RATE, quality="HQ"))


def read_and_write(path: str) -> None:
    """The least that any program does which leaves PCM16 behind."""
    samples, rate = soundfile.read(path, dtype="float32")
    samples = samples if rate == RATE else soxr.resample(samples, rate, RATE, quality="HQ")
    (samples * np.float32(32767)).astype("<i2").tofile(path + ".pcm")


def copy_alone(path: str) -> None:
    shutil.copyfile(path, path + ".copy")


def material() -> np.ndarray:
    """Some minutes of real recordings, else noise."""
    paths = sorted(REAL.rglob("*.ogg"))[::4] if REAL.is_dir() else []
    if paths:
        return np.concatenate([soundfile.read(path, dtype="float32")[0] for path in paths])
    return np.random.default_rng(0).normal(0, 0.1, 600 * RATE).astype(np.float32)


def make_files(folder: Path, suffix: str, rate: int, count: int, seconds: float) -> list[str]:
    """Different files of one length, each another stretch of the material."""
    audio = material()
    folder.mkdir(parents=True)
    paths = []
    for i in range(count):
        start = (i * 7919 * 13) % len(audio)
        samples = np.take(audio, np.arange(start, start + round(seconds * RATE)), mode="wrap")
        samples = soxr.resample(samples, RATE, rate) if rate != RATE else samples
        paths.append(str(folder / f"XC{i}.{suffix}"))
        with soundfile.SoundFile(paths[-1], "w", rate, 1) as file:
            # libsndfile's Vorbis encoder dies of a long array at once.
            for at in range(0, len(samples), rate):
                file.write(samples[at : at + rate])
    return paths


def tables_of(paths: list[str]):
    """The least tables that name these files."""
    import pandas as pd

    from birdtpu.data.tables import ANNOTATIONS, RECORDINGS, SPECIES, Tables

    names = [Path(path).name for path in paths]
    rows = pd.DataFrame({name: [""] * len(names) for name in RECORDINGS})
    rows = rows.assign(recording=[Path(name).stem for name in names], path=names, data_set="home", primary_label="owl")
    rows = rows.assign(latitude=np.nan, longitude=np.nan, rating=np.nan, duration_seconds=np.nan)
    species = pd.DataFrame([["owl", "", ""]], columns=list(SPECIES))
    return Tables(rows, pd.DataFrame(columns=list(ANNOTATIONS)), species)


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(function, *arguments) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    function(*arguments)
    return time.perf_counter() - wall, cpu_seconds() - cpu


def run_prepare(paths: list[str], output: Path, workers: int) -> None:
    from birdtpu.data.prepare import prepare

    report = prepare(
        tables_of(paths), {"home": Path(paths[0]).parent}, output, sample_rate=RATE, record_seconds=10, workers=workers
    )
    if report.recordings != len(paths):
        raise SystemExit(f"{report.failures} {report.duplicates}")


def run_peer(function, paths: list[str], workers: int) -> tuple[float, float]:
    """Wall and CPU seconds of the peer, without the start of its processes."""
    cpu = cpu_seconds()
    with Pool(workers) as pool:
        # Every process has answered once before the clock starts.
        list(pool.run(read_alone, paths[:1] * workers * 2))
        wall, _ = timed(lambda: list(pool.run(function, paths)))
    return wall, cpu_seconds() - cpu


def speed(name: str, rate: int, scratch: Path, options: argparse.Namespace) -> dict:
    """One case: medians of `prepare` and its peer, and their ratio."""
    suffix = name.split(",")[0]
    paths = make_files(scratch / name.replace(", ", "-"), suffix, rate, options.files, options.seconds)
    peers = {"decode": read_alone, "decode and write": read_and_write} | (
        {"copy": copy_alone} if suffix == "wav" else {}
    )
    seconds: dict[str, list] = {"prepare": [], **{peer: [] for peer in peers}}
    for _ in range(options.repetitions):
        for peer, function in peers.items():
            seconds[peer].append(run_peer(function, paths, options.workers))
            for path in paths:
                Path(path + ".pcm").unlink(missing_ok=True)
                Path(path + ".copy").unlink(missing_ok=True)
        shutil.rmtree(scratch / "output", ignore_errors=True)
        seconds["prepare"].append(timed(run_prepare, paths, scratch / "output", options.workers))
    median = {who: statistics.median(wall for wall, _ in runs) for who, runs in seconds.items()}
    cpu = {who: statistics.median(cpu for _, cpu in runs) for who, runs in seconds.items()}
    audio_seconds = options.files * options.seconds
    return {
        "audio_seconds": audio_seconds,
        "median_seconds": median,
        "cpu_seconds": cpu,
        "times_real_time": {who: audio_seconds / wall for who, wall in median.items()},
        "ratio": {peer: median[peer] / median["prepare"] for peer in peers},
        "cpu_ratio": {peer: cpu[peer] / cpu["prepare"] for peer in peers},
        "bytes_written": sum(path.stat().st_size for path in (scratch / "output" / "shards").iterdir()),
        "load_average": os.getloadavg()[0],
    }


def make_long(path: Path, hours: float, rate: int) -> None:
    """A file of faint noise, written and never held."""
    noise = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 1, subtype="PCM_16") as file:
        for _ in range(round(hours * 60)):
            file.write(noise.integers(-300, 300, 60 * rate, dtype=np.int16))


MEASURE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from birdtpu.data.prepare import prepare
from prepare import tables_of
report = prepare(tables_of([sys.argv[1]]), {"home": Path(sys.argv[1]).parent}, sys.argv[2],
                 sample_rate=int(sys.argv[4]), record_seconds=10, workers=1)
assert report.recordings == 1, report
# A process's own ru_maxrss begins with that of the one which started it.
status = Path("/proc/self/status").read_text().split()
print(status[status.index("VmHWM:") + 1], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def memory(hours: float, scratch: Path, rate: int) -> dict:
    """The peak memory of `prepare`'s main process and of its worker, on one file, and the run's seconds."""
    path = scratch / f"XC{hours:g}.flac"
    make_long(path, hours, rate)
    began = time.perf_counter()
    home = Path(__file__).resolve().parent
    command = [sys.executable, "-c", MEASURE, str(path), str(scratch / "output"), str(home), str(rate)]
    done = subprocess.run(command, cwd=home.parent, check=True, capture_output=True, text=True)
    main, worker = (int(kib) / 1024 for kib in done.stdout.split())
    return {"main_mib": main, "worker_mib": worker, "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each file")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--hours", type=float, nargs="*", default=[1.0, 24.0])
    parser.add_argument("--memory-rate", type=int, default=RATE, help="sample rate of the long files and their records")
    parser.add_argument("--json", type=Path, default=Path("prepare.json"))
    options = parser.parse_args()
    report = json.loads(options.json.read_text()) if options.json.exists() else {}
    jobs = itertools.chain(
        ((f"speed: {name}", speed, (name, CASES[name])) for name in options.cases),
        ((f"memory: {hours:g} h", memory, (hours,)) for hours in options.hours),
    )
    for name, function, arguments in jobs:
        if name not in report:
            with tempfile.TemporaryDirectory() as scratch:
                last = options if function is speed else options.memory_rate
                report[name] = function(*arguments, Path(scratch), last)
            options.json.write_text(json.dumps(report, indent=1) + "\n")
        print(name, json.dumps(report[name]), flush=True)


if __name__ == "__main__":
    main()
