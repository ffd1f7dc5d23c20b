"""From shards on Cloud Storage to published weights, with the real clients: a training is killed on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import birdtpu
import gcs_tools
from birdtpu.data.synthesis import synthesize
from birdtpu.workflows.prepare import prepare
from tests.fakes import google as googles
from tests.fakes import kaggle as kaggles
from tests.fakes.google import google
from tests.fakes.kaggle import FakeKaggle, private
from tests.fakes.server import Fault, Reply

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "audio.clip_seconds=2.0", "audio.margin_seconds=0.5", "audio.record_seconds=6.0", "predict.hop_seconds=1.0",
    "frontend.hop_length=1024", "frontend.n_mels=32", "model.features=16", "train.batch_size=8", "train.epochs=3",
    "train.steps_per_epoch=3", "balance.up_to=0", "folds.count=2", "evaluate.bootstrap=50",
]  # fmt: skip
TO = f"{kaggles.USER}/dawn-chorus"
SECRETS = (*googles.CANARIES, *kaggles.CANARIES, "canary")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    home = tmp_path_factory.mktemp("world")
    synthesize(home / "w", species=3, recordings=6, soundscapes=1, seed=3)
    prepare("quickstart", home / "w" / "train_audio", home / "p", settings=TINY)
    return home


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    home = tmp_path / "cloud"
    home.mkdir()
    server, storage, environment = google(home, "bucket")
    server.storage, server.kaggle = storage, FakeKaggle()
    server.services[r"(api|uploads|downloads)\.kaggle\.com"] = server.kaggle
    for name in [name for name in os.environ if name.startswith("KAGGLE_")] + ["STORAGE_EMULATOR_HOST"]:
        monkeypatch.delenv(name, raising=False)
    # The same bits from run to run, and errors that end soon.
    settings = {"TF_ENABLE_ONEDNN_OPTS": "0", "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "1000"}
    for name, value in {**environment, **private(home), **settings}.items():
        monkeypatch.setenv(name, value)
    with server.running():
        yield server


TRAIN = """
import sys, birdtpu
birdtpu.train("quickstart", sys.argv[1], sys.argv[2], fold=0, save_steps=1, settings=sys.argv[4:])
"""
# What follows needs no process of its own, each of which would import TensorFlow again; then names begin anew.
GO_ON = (
    TRAIN
    + """
import keras
from birdtpu.cli import main
from birdtpu.publish.send import publish
from birdtpu.run import open_run
birdtpu.evaluate(sys.argv[2], output=sys.argv[2] + "/evaluation")
print(publish(open_run(sys.argv[2]), "ornithologist/dawn-chorus").place)
keras.utils.clear_session()
birdtpu.train("quickstart", sys.argv[3], sys.argv[3] + "/../alone", fold=0, save_steps=1, settings=sys.argv[4:])
sys.argv[1:] = ["train", "quickstart", "--data", "gs://bucket/refused", "--run", sys.argv[3] + "/../refused"]
main()
"""
)


def start(code: str, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, words), *TINY]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def refused(prefix: str) -> Fault:
    """Cloud Storage's answer to whoever may not read below a prefix."""
    message = "me does not have storage.objects.get access to the Google Cloud Storage object."
    body = json.dumps({"error": {"code": 403, "message": message}}).encode()
    return Fault("", prefix, times=99, reply=Reply(403, body, {"Content-Type": "application/json"}))


@pytest.mark.timeout(600)
def test_shards_up_weights_out(cloud, prepared, tmp_path):
    """Push, train from `gs://`, SIGKILL, go on, evaluate, publish, load back, predict; be refused in one line."""
    spans, answer = [], cloud.answer

    def noted(request):
        if request.method == "GET" and "shard-" in request.line:
            spans.append(request.headers["range"])
        return answer(request)

    cloud.answer = noted
    gcs_tools.push(prepared / "p", "gs://bucket/p")
    assert gcs_tools.verify("gs://bucket/p") == []
    local = shutil.copytree(prepared / "p", tmp_path / "local")
    killed = start(TRAIN, "gs://bucket/p", "gs://bucket/one", local)
    deadline = time.monotonic() + 200
    while len([name for name in cloud.storage.data("bucket", "one/") if "checkpoint" in name]) < 2:
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[0]
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    said = [killed.communicate()[0]]
    assert "one/model.weights.h5" not in cloud.storage.data("bucket")

    cloud.faults += [Fault("503", "GET storage.*shard-"), Fault("drop", "upload.*one", at=3), refused("refused")]
    process = start(GO_ON, "gs://bucket/p", "gs://bucket/one", local)
    said.append(process.communicate(timeout=280)[0])
    last = said[-1].splitlines()[-1]
    assert process.returncode == 2 and re.fullmatch(r"birdtpu: .*does not have storage\.objects\.get access.*", last)
    assert "Traceback" not in said[-1]
    assert "going on after step" in said[-1] and f"kaggle:{TO}/versions/1" in said[-1]
    assert all(fault.seen >= fault.at for fault in cloud.faults)
    # By itself TensorFlow would fetch each record with all that follows it, up to 64 MiB.
    lengths = [int(last) - int(first) + 1 for first, last in (span[6:].split("-") for span in spans if span)]
    assert lengths and max(lengths) <= 1 << 20
    held = cloud.storage.data("bucket", "one/")
    assert held["one/model.weights.h5"] == (tmp_path / "alone" / "model.weights.h5").read_bytes()
    assert "one/evaluation/metrics.json" in held and not [name for name in held if "checkpoint" in name]
    published = cloud.kaggle.datasets[TO].versions[0].files
    assert published["model.weights.h5"] == held["one/model.weights.h5"] and "metrics.json" in published

    audio = sorted((prepared / "w" / "train_audio").rglob("*.*"))[0]
    there, here = birdtpu.load(f"kaggle:{TO}"), birdtpu.load(tmp_path / "alone")
    assert there.predict(audio, threshold=0).equals(here.predict(audio, threshold=0))
    found = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "credentials.json"]
    texts = [*said, *(path.read_bytes().decode("latin-1") for path in found)]
    texts += [data.decode("latin-1") for data in [*held.values(), *published.values()]]
    assert not [secret for secret in SECRETS if any(secret in text for text in texts)]
