"""A bucket in memory, 50 ms away: gcs_tools beside a plain loop, uploads that are killed, shards read in training.

python benchmarks/gcs.py --json FILE [--shards 200] [--megabytes 4] [--latency-ms 50] [--kills 50]

The bucket is a process of its own on 127.0.0.1; the client is the real one, through TLS and with credentials. The
plain loop is what the client's own documentation shows: one file after the other, `upload_from_filename`.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def serve(folder: str, pipe: Any) -> None:
    """The bucket's process: sends its environment, then answers commands."""
    from tests.fakes.google import google

    server, storage, environment = google(Path(folder), "bucket")
    with server.running():
        pipe.send(environment)
        while (command := pipe.recv()) is not None:
            name, value = command
            if name == "latency":
                server.latency_seconds = value
            elif name == "clear":
                storage.objects.clear()
                server.lines.clear()
            pipe.send(
                {
                    "requests": len(server.lines),
                    "objects": {n: hashlib.sha256(d).hexdigest() for n, d in storage.data("bucket").items()}
                    if name == "objects"
                    else None,
                }
            )


class Bucket:
    """The other end of `serve`."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(str(folder), theirs), daemon=True)
        self.process.start()
        self.environment = self.pipe.recv()

    def ask(self, name: str, value: object = None) -> dict[str, Any]:
        self.pipe.send((name, value))
        return self.pipe.recv()


def timed(bucket: Bucket, work: Callable[[], object]) -> dict[str, float]:
    before = bucket.ask("count")["requests"]
    began = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - began, "requests": bucket.ask("count")["requests"] - before}


def plain_push(folder: Path) -> None:
    from google.cloud import storage

    bucket = storage.Client(project="none").bucket("bucket")
    for path in sorted(folder.iterdir()):
        bucket.blob(f"plain/{path.name}").upload_from_filename(path, if_generation_match=0)


def plain_pull(folder: Path) -> None:
    from google.cloud import storage

    client = storage.Client(project="none")
    for blob in client.list_blobs("bucket", prefix="plain/"):
        blob.download_to_filename(folder / Path(blob.name).name)


def speed(bucket: Bucket, work: Path, shards: int, size: int, latency: float, turns: int) -> dict[str, Any]:
    """Both ways in turn; the median of the ratios."""
    import gcs_tools

    folder = work / "shards"
    folder.mkdir()
    for i in range(shards):
        (folder / f"shard-{i:05d}.tfrecord").write_bytes(random.Random(i).randbytes(size))
    rows = []
    for _ in range(turns):
        bucket.ask("clear")
        bucket.ask("latency", latency)
        row = {
            "push": timed(bucket, lambda: gcs_tools.push(folder, "gs://bucket/ours")),
            "plain_push": timed(bucket, lambda: plain_push(folder)),
        }
        for name, fetch in (("pull", lambda to: gcs_tools.pull("gs://bucket/ours", to)), ("plain_pull", plain_pull)):
            with tempfile.TemporaryDirectory(dir=work) as to:
                row[name] = timed(bucket, lambda fetch=fetch, to=to: fetch(Path(to)))
        rows.append(row)
        print(json.dumps(row), flush=True)
    bucket.ask("latency", 0.0)
    found: dict[str, Any] = {"shards": shards, "bytes_each": size, "latency_seconds": latency, "turns": rows}
    for name in ("push", "pull"):
        ratios = [row[f"plain_{name}"]["seconds"] / row[name]["seconds"] for row in rows]
        found[f"{name}_times_as_fast"] = statistics.median(ratios)
        found[f"{name}_requests_per_file"] = rows[0][name]["requests"] / shards
    return found


def reading(bucket: Bucket, work: Path, seconds: int, latency: float, turns: int) -> dict[str, Any]:
    """Shards of 4 MB back through the training pipeline, beside the bare client's loop over the same objects."""
    import numpy as np
    import soundfile
    from google.cloud import storage

    import gcs_tools
    from birdtpu.data import pipeline
    from birdtpu.data.prepare import prepare
    from birdtpu.data.tables import read_tables
    from birdtpu.recipe import load_recipe
    from birdtpu.workflows.prepared import open_prepared
    from birdtpu.workflows.samples import make_plan

    recipe = load_recipe("quickstart", ["balance.up_to=0"])
    rate = recipe.audio.sample_rate
    for i in range(seconds // 60):
        path = work / "noise" / f"species{i % 4}" / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(i).normal(0, 0.1, 60 * rate), rate)
    prepare(
        read_tables(str(work / "noise"), None, data_set="noise", taxonomy=None),
        {"noise": work / "noise"},
        work / "prepared",
        sample_rate=rate,
        record_seconds=recipe.audio.record_seconds,
        workers=2,
        shard_bytes=4_000_000,
    )
    bucket.ask("clear")
    gcs_tools.push(work / "prepared", "gs://bucket/prepared")
    bucket.ask("latency", latency)
    prepared = open_prepared(recipe, ["gs://bucket/prepared"])
    classes, plan, _ = make_plan(recipe, prepared, None)
    plan = plan[plan["role"] == "train"].reset_index(drop=True)
    lengths = prepared.records.set_index("record")["length"]
    useful = int(lengths[plan["record"]].sum())

    def through_the_pipeline() -> None:
        for _ in pipeline.batches(
            "gs://bucket/prepared", plan, classes, clip_samples=recipe.source_samples, batch_size=32, training=False,
            pcm16=True,
        ):  # fmt: skip
            pass

    def bare() -> None:
        client = storage.Client(project="none")
        for blob in client.list_blobs("bucket", prefix="prepared/shards/"):
            blob.download_as_bytes()

    through_the_pipeline()
    rows = []
    for _ in range(turns):
        ours, theirs = timed(bucket, through_the_pipeline), timed(bucket, bare)
        ours["bytes_per_second"], theirs["bytes_per_second"] = (
            useful / ours["seconds"],
            int(lengths.sum()) / theirs["seconds"],
        )
        rows.append({"pipeline": ours, "bare_client": theirs})
        print(json.dumps(rows[-1]), flush=True)
    bucket.ask("latency", 0.0)
    ratios = [row["pipeline"]["bytes_per_second"] / row["bare_client"]["bytes_per_second"] for row in rows]
    return {"clips": len(plan), "record_bytes_read": useful, "turns": rows, "of_bare_client": statistics.median(ratios)}


def kills(bucket: Bucket, work: Path, count: int) -> dict[str, Any]:
    """SIGKILL a push at random moments; what is there in the end must be what one push alone leaves."""
    folder = work / "killed"
    folder.mkdir()
    chance = random.Random(0)
    for i in range(30):
        (folder / f"file-{i:02d}").write_bytes(chance.randbytes(chance.choice([10_000, 300_000, 9 << 20])))
    command = [sys.executable, "-m", "gcs_tools", "push", str(folder), "gs://bucket/killed"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    bucket.ask("clear")
    bucket.ask("latency", 0.05)
    process = subprocess.Popen(command, **quiet)
    seconds = _after_first_request(bucket, process, process.wait)
    truth = bucket.ask("objects")["objects"]
    done = partial = same = rounds = 0
    while done < count:
        bucket.ask("clear")
        for _ in range(5):
            process = subprocess.Popen(command, **quiet)
            # Before its first request there is nothing to lose.
            moment = chance.uniform(0, seconds)
            _after_first_request(bucket, process, lambda moment=moment: time.sleep(moment))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                done += 1
            process.wait()
            held = bucket.ask("objects")["objects"]
            assert "killed/gcs-manifest.json" not in held or held == truth, "a manifest before its files"
            partial += 0 < len(held) < len(truth)
        subprocess.run(command, check=True, **quiet)
        rounds += 1
        same += bucket.ask("objects")["objects"] == truth
    bucket.ask("latency", 0.0)
    return {"kills": done, "kills_with_part_of_it_there": partial, "rounds": rounds, "same_bytes": same}


def _after_first_request(bucket: Bucket, process: subprocess.Popen, wait: Callable[[], Any]) -> float:
    """Wait for a request of the process, then by `wait`: the seconds of the second part."""
    before = bucket.ask("count")["requests"]
    while process.poll() is None and bucket.ask("count")["requests"] == before:
        time.sleep(0.01)
    began = time.perf_counter()
    wait()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, type=Path, help="what stands in it is not measured again")
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=4)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--minutes", type=int, default=120, help="of audio that is read back")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="birdtpu-gcs-"))
    try:
        bucket = Bucket(work)
        os.environ.update(bucket.environment)
        os.environ.pop("STORAGE_EMULATOR_HOST", None)
        root = str(Path(__file__).resolve().parents[1])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        found = json.loads(args.json.read_text()) if args.json.exists() else {}
        latency = args.latency_ms / 1e3
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "speed": lambda: speed(bucket, work, args.shards, args.megabytes * 1_000_000, latency, args.turns),
            "reading": lambda: reading(bucket, work, args.minutes * 60, latency, args.turns),
            "kills": lambda: kills(bucket, work, args.kills),
        }
        for name in [name for name in parts if name not in found]:
            found[name] = parts[name]()
            args.json.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            print(json.dumps({k: v for k, v in found[name].items() if k != "turns"}, indent=1), flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
