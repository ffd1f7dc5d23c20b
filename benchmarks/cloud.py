"""From recordings to published weights through Cloud Storage and Kaggle, both in memory on 127.0.0.1.

    python benchmarks/cloud.py --json FILE [--latency-ms 50] [--set TABLE.KEY=VALUE ...]

Every step is a command as a user types it, in a process of its own, by the real clients through TLS and with
credentials; the training is killed by SIGKILL after its second checkpoint and called again. Printed and written:
seconds, requests and bytes each way. In the end the weights that came back are those of a training left alone, and no
output and no file holds a credential.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))
QUICKER = ("train.epochs=4", "train.steps_per_epoch=5", "balance.up_to=0", "folds.count=2", "evaluate.bootstrap=50")
TO = "ornithologist/dawn-chorus"


class Chain:
    """Runs commands and notes what each cost.

    Args:
        server: The loopback server with both services.
    """

    def __init__(self, server: object) -> None:
        self.server = server
        self.steps: list[dict] = []
        self.said: list[str] = []

    def start(self, *words: str) -> subprocess.Popen:
        """A command of birdtpu, or of gcs_tools where that is its first word."""
        module = ["gcs_tools", *words[1:]] if words[0] == "gcs_tools" else ["birdtpu", *words]
        return subprocess.Popen(
            [sys.executable, "-m", *module], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *words: str, kill_when: object = None) -> None:
        server = self.server
        before = (len(server.lines), server.received, server.sent)
        began, killed = time.perf_counter(), False
        process = self.start(*words)
        while kill_when is not None and process.poll() is None:
            if kill_when():
                process.send_signal(signal.SIGKILL)
                killed = True
                break
            time.sleep(0.002)
        out = process.communicate()[0]
        self.said.append(out)
        assert killed or process.returncode == 0, out
        after = (len(server.lines), server.received, server.sent)
        requests, up, down = (b - a for a, b in zip(before, after, strict=True))
        seconds = round(time.perf_counter() - began, 1)
        name = " ".join(words[:2] if words[0] == "gcs_tools" else words[:1]) + (" (killed)" if killed else "")
        step = {"step": name, "seconds": seconds, "requests": requests, "bytes_up": up, "bytes_down": down}
        self.steps.append(step)
        print(f"{name:20} {seconds:7.1f} s {requests:6} requests {up:12,} bytes up {down:12,} down", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="beyond " + " ".join(QUICKER))
    args = parser.parse_args()
    from birdtpu.data.synthesis import synthesize
    from tests.fakes import google as googles
    from tests.fakes import kaggle as kaggles

    with tempfile.TemporaryDirectory(prefix="birdtpu-cloud-") as folder:
        home = Path(folder)
        (home / "cloud").mkdir()
        server, storage, environment = googles.google(home / "cloud", "bucket")
        fake = kaggles.FakeKaggle()
        fake.lag = 2
        server.services[r"(api|uploads|downloads)\.kaggle\.com"] = fake
        server.latency_seconds = args.latency_ms / 1e3
        os.environ.update({**environment, **kaggles.private(home / "cloud"), "TF_CPP_MIN_LOG_LEVEL": "2"})
        os.environ.update({"PYTHONPATH": str(PROJECT), "TF_ENABLE_ONEDNN_OPTS": "0"})
        os.environ.pop("STORAGE_EMULATOR_HOST", None)
        synthesize(home / "world", species=4, recordings=10, soundscapes=1)
        files = {f"train_audio/{p.parent.name}/{p.name}": p for p in (home / "world" / "train_audio").rglob("*.*")}
        fake.competitions["birdclef-2026"] = kaggles.zipped({name: path.read_bytes() for name, path in files.items()})
        chosen = [word for setting in (*QUICKER, *args.settings) for word in ("--set", setting)]
        training = ["train", "quickstart", "--fold", "0", "--save-steps", "2", *chosen]
        with server.running():
            chain = Chain(server)
            chain.run("fetch", "birdclef-2026", "--output", str(home / "in"))
            audio = str(home / "in" / "train_audio")
            chain.run("prepare", "quickstart", "--audio", audio, "--output", str(home / "p"), *chosen)
            chain.run("gcs_tools", "push", str(home / "p"), "gs://bucket/p")
            chain.run("gcs_tools", "verify", "gs://bucket/p")
            remote = [*training, "--data", "gs://bucket/p", "--run", "gs://bucket/run"]

            def two_checkpoints() -> bool:
                return sum(name.endswith(".safetensors") for name in storage.data("bucket", "run/")) == 2

            chain.run(*remote, kill_when=two_checkpoints)
            chain.run(*remote)
            chain.run("evaluate", "gs://bucket/run")
            chain.run("publish", "gs://bucket/run", "--to", TO)
            chain.run(
                "predict", f"kaggle:{TO}", str(home / "world" / "train_soundscapes"), "--output", str(home / "out")
            )
            chain.run(*training, "--data", str(home / "p"), "--run", str(home / "alone"))
        weights = storage.data("bucket")["run/model.weights.h5"]
        published = fake.datasets[TO].versions[-1].files
        secrets = [secret.encode() for secret in (*googles.CANARIES, *kaggles.CANARIES, "canary")]
        written = [p for p in home.rglob("*") if p.is_file() and p.name != "credentials.json"]
        everything = [*(p.read_bytes() for p in written), *storage.data("bucket").values(), *published.values()]
        everything += [text.encode() for text in chain.said]
        found = {
            "latency_seconds": server.latency_seconds,
            "steps": chain.steps,
            "same_weights_as_alone": weights == (home / "alone" / "model.weights.h5").read_bytes(),
            "published_weights_are_the_runs": published["model.weights.h5"] == weights,
            "create_requests": len(fake.creations),
            "credentials_found": sum(secret in data for secret in secrets for data in everything),
            "places_searched": len(everything),
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps({key: value for key, value in found.items() if key != "steps"}, indent=1))


if __name__ == "__main__":
    main()
