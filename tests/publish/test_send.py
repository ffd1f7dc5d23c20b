"""The real client publishes to a Kaggle in memory, and fetches back."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import birdtpu
from birdtpu.errors import UserError
from birdtpu.models.build import SoundEventModel
from birdtpu.publish import places, release
from birdtpu.publish.client import Kaggle, KaggleError
from birdtpu.publish.send import publish, target
from birdtpu.run import WEIGHTS, Run, open_run
from tests.fakes import kaggle as fakes
from tests.fakes.kaggle import CANARIES, Version, serving
from tests.fakes.server import Fault

ROOT = Path(__file__).resolve().parents[2]
TO = f"{fakes.USER}/dawn-chorus"
FAST = {"wait_seconds": 20.0, "unconfirmed_seconds": 3.0}


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as server:
        yield server


def versions(cloud, key=TO) -> list[Version]:
    return cloud.kaggle.datasets[key].versions if key in cloud.kaggle.datasets else []


def another(run, tmp_path) -> Run:
    """The same run with other weights."""
    network = SoundEventModel(run.recipe, 2, weights="none").network
    network.set_weights([array + 1 for array in network.get_weights()])
    other = replace(run, folder=str(tmp_path / "other"))
    return other.save_weights(network)


def test_a_run_goes_up_and_comes_back(cloud, run, tmp_path):
    cloud.kaggle.lag = 2
    done = publish(run, TO, **FAST)
    assert (str(done.place), done.sent) == (f"kaggle:{TO}/versions/1", True)
    about = cloud.kaggle.datasets[TO].about
    assert (about["title"], about["licenseName"], about["isPrivate"]) == ("dawn chorus", "CC-BY-NC-SA-4.0", True)
    files = versions(cloud)[0].files
    names = {"README.md", "classes.csv", "metrics.json", "recipe.toml", "run.json", "thresholds.json"}
    assert set(files) == {*names, WEIGHTS, release.MANIFEST}
    assert files[WEIGHTS] == (Path(run.folder) / WEIGHTS).read_bytes()
    assert b"alice" not in b"".join(files.values()) and json.loads(files["run.json"])["data"] == ["prepared"]
    named = [json.loads(files["run.json"])[key] for key in ("unlabelled", "init_from", "pseudo", "teacher")]
    assert named == [["night"], "first", "p.npz", "t.npz"]
    card = files["README.md"].decode()
    assert f"birdtpu predict kaggle:{TO} recordings/" in card and "| eurbla | Turdus merula | Blackbird |" in card
    assert "macro average precision 0.912 (95 % 0.800 to 0.970) on 36 recordings" in card

    audio = np.random.default_rng(0).normal(0, 0.1, 3 * run.recipe.audio.sample_rate).astype("float32")
    import soundfile

    soundfile.write(tmp_path / "one.wav", audio, run.recipe.audio.sample_rate)
    there, here = birdtpu.load(f"kaggle:{TO}"), birdtpu.load(run.folder)
    assert there.predict(tmp_path / "one.wav").equals(here.predict(tmp_path / "one.wav"))
    assert (there.thresholds == here.thresholds).all()
    # What is fetched is kept: the second time only the version is asked for.
    cloud.lines.clear()
    birdtpu.load(f"kaggle:{TO}")
    assert not [line for line in cloud.lines if "Download" in line]


def test_the_same_run_is_not_published_twice(cloud, run, tmp_path):
    assert publish(run, TO, **FAST).sent
    again = publish(run, TO, **FAST)
    assert (again.sent, again.place.version, len(versions(cloud))) == (False, 1, 1)
    second = publish(another(run, tmp_path), TO, **FAST)
    assert (second.sent, second.place.version) == (True, 2)
    assert versions(cloud)[1].notes == f"quickstart {run.recipe.hash}: not evaluated"
    assert [name for name, _ in cloud.kaggle.creations] == ["CreateDataset", "CreateDatasetVersion"]
    old = birdtpu.load(f"kaggle:{TO}/versions/1")
    assert old.run.info["weights_sha256"] == run.info["weights_sha256"]


def test_chosen_thresholds_are_published(cloud, run, tmp_path):
    other = another(run, tmp_path)
    publish(other, TO, **FAST)
    chosen = {"eurbla": 0.1234567890123456, "eurrob1": 1 / 3}
    other.save_thresholds("segmentwise", chosen)
    assert publish(other, TO, **FAST).place.version == 2
    published = json.loads(versions(cloud)[1].files["thresholds.json"])
    assert published == {head: other.thresholds(head) for head in ("attention", "clipwise", "segmentwise")}
    assert list(birdtpu.load(f"kaggle:{TO}").thresholds) == list(chosen.values())


def test_a_model_goes_up_and_comes_back(cloud, run, tmp_path):
    to = f"{fakes.USER}/dawn-model"
    done = publish(run, to, model=True, public=True, **FAST)
    assert str(done.place) == f"kaggle:{to}/keras/quickstart/1" and done.sent
    assert cloud.kaggle.models[to]["isPrivate"] is False
    assert not publish(run, to, model=True, **FAST).sent
    second = publish(another(run, tmp_path), to, model=True, **FAST)
    assert second.place.version == 2 and second.place.url == f"https://www.kaggle.com/models/{to}/keras/quickstart"
    made = [name for name, _ in cloud.kaggle.creations]
    assert made == ["CreateModel", "CreateModelInstance", "CreateModelInstanceVersion"]
    assert birdtpu.load(f"kaggle:{to}/keras/quickstart/1").run.info["weights_sha256"] == run.info["weights_sha256"]


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("short", {}, "no address on Kaggle"),
        ("me/abc", {}, "slug has 6 to 50 characters, abc has 3"),
        ("me/" + "a" * 51, {}, "has 51"),
        ("me/Dawn-Chorus", {}, "a slug has small letters"),
        ("me/dawn_chorus", {}, "a slug has small letters"),
        ("me/dawn-chorus/versions/3", {}, "Kaggle numbers the versions"),
        ("me/dawn/keras/one", {}, "owner/model.* with --model"),
        ("me/dawn-chorus", {"title": "abc"}, "--title: Kaggle takes 6 to 50"),
        ("me/dawn-chorus", {"title": "a" * 51}, "--title: Kaggle takes 6 to 50"),
        ("me/dawn-chorus", {"licence": "MIT"}, "--licence MIT: one of CC-BY-NC-SA-4.0"),
        ("me/../chorus", {}, "no address on Kaggle"),
        ("me/dawn/rust/one", {"model": True}, "Kaggle knows no framework rust"),
    ],
)
def test_limits_are_checked_before_a_byte_is_sent(cloud, run, to, options, message):
    with pytest.raises(UserError, match=message):
        publish(run, to, **options)
    assert not cloud.kaggle.creations and cloud.received < 2000


def test_damaged_weights_are_not_published(cloud, run, tmp_path):
    damaged = another(run, tmp_path)
    (tmp_path / "other" / WEIGHTS).write_bytes(b"x")
    with pytest.raises(UserError, match="not the weights that were saved"):
        publish(open_run(damaged.folder), TO)
    assert not cloud.lines


KINDS = ["429", "500", "503", "drop", "lost", "truncate"]
RPCS = ["IntrospectToken", "GetDatasetStatus", "GetDataset$", "StartBlobUpload", "PUT", "DownloadDataset", "GET down"]


# What is asked and answered in between, TLS keeps whole.
CASES = [(kind, rpc) for rpc in [*RPCS, "CreateDataset"] for kind in KINDS]
CASES += [(kind, where) for where in ("PUT", "GET down") for kind in ("flip", "flip-sent", "410")]


@pytest.mark.parametrize(("kind", "match"), CASES)
def test_publishing_survives_one_fault(cloud, run, kind, match):
    cloud.faults.append(Fault(kind, match, at=3 if match == "PUT" else 1))
    for _ in range(3):
        try:
            done = publish(run, TO, **FAST)
            break
        except KaggleError as error:
            assert "\n" not in str(error) and not any(secret in str(error) for secret in CANARIES)
            cloud.faults.clear()
    else:
        raise AssertionError("three calls were not enough")
    made = [name for name, _ in cloud.kaggle.creations]
    damaged = kind == "flip-sent" and match == "PUT"
    assert len(versions(cloud)) == done.place.version == (2 if damaged else 1)
    # What was refused or lost on its way there made nothing, so a second call sends it again.
    assert len(made) <= 2
    back = Path(places.resolve(f"kaggle:{TO}"))
    assert release.check(back) == [] and (back / WEIGHTS).read_bytes() == run.weights()


@pytest.mark.parametrize("kind", ["lost", "500", "503", "drop"])
@pytest.mark.parametrize("first", [True, False])
def test_a_lost_reply_is_settled_by_looking(cloud, run, tmp_path, kind, first):
    if not first:
        publish(another(run, tmp_path), TO, **FAST)
    cloud.kaggle.creations.clear()
    cloud.kaggle.lag = 2
    before = len(versions(cloud))
    cloud.faults.append(Fault(kind, "Create", times=9))
    if kind == "lost":
        done = publish(run, TO, **FAST)
        assert done.sent and done.place.version == before + 1
    else:
        message = rf"not known whether .*Kaggle still shows version {before}\. Look at https://www.kaggle.com/datasets"
        with pytest.raises(KaggleError, match=message):
            publish(run, TO, **FAST)
    assert len([line for line in cloud.lines if "/Create" in line]) == (1 if first else 2)
    assert len(versions(cloud)) == before + (kind == "lost")


def test_a_version_that_kaggle_is_still_making_is_waited_for(cloud, run):
    """The reply was lost and the version shows late: the second call must not make it again."""
    cloud.kaggle.lag = 40
    cloud.faults.append(Fault("lost", "Create"))
    with pytest.raises(KaggleError, match="not known whether"):
        publish(run, TO, wait_seconds=20, unconfirmed_seconds=0.2)
    cloud.kaggle.datasets[TO].unseen = 3
    done = publish(run, TO, **FAST)
    assert (done.sent, len(versions(cloud)), len(cloud.kaggle.creations)) == (False, 1, 1)


def test_while_kaggle_is_still_making_one_nothing_is_sent(cloud, run):
    cloud.kaggle.lag = 10**6
    cloud.faults.append(Fault("lost", "Create"))
    for _ in range(2):
        with pytest.raises(KaggleError, match=r"not known whether|still making a version|not there"):
            publish(run, TO, wait_seconds=1, unconfirmed_seconds=0.2)
    assert len(cloud.kaggle.creations) == 1


def test_a_models_version_that_shows_late_is_not_made_again(cloud, run):
    to = f"{fakes.USER}/dawn-model"
    cloud.kaggle.lag = 4
    cloud.faults.append(Fault("lost", "CreateModelInstance"))
    with pytest.raises(KaggleError, match="not known whether"):
        publish(run, to, model=True, wait_seconds=20, unconfirmed_seconds=0.2)
    done = publish(run, to, model=True, **FAST)
    assert (done.sent, done.place.version) == (False, 1)
    assert [name for name, _ in cloud.kaggle.creations].count("CreateModelInstance") == 1
    assert not Path(run.path("publishing.json")).exists()


def test_files_that_can_be_read_late_are_waited_for(cloud, run):
    cloud.faults += [Fault("404", "DownloadDataset", times=2)]
    assert publish(run, TO, **FAST).sent
    cloud.faults[:] = [Fault("404", "DownloadDataset", times=2)]
    assert not publish(run, TO, **FAST).sent and len(versions(cloud)) == 1


def test_a_version_that_kaggle_cannot_make_is_an_error(cloud, run, tmp_path):
    publish(another(run, tmp_path), TO, **FAST)
    cloud.kaggle.datasets[TO].failed = True
    with pytest.raises(KaggleError, match=r"versions/2: Kaggle could not make it \(state failed\)"):
        publish(run, TO, **FAST)


def test_refusals_name_the_credential(cloud, run, monkeypatch):
    cloud.kaggle.refused.add("CreateDataset")
    with pytest.raises(KaggleError, match="no permission by the token of KAGGLE_API_TOKEN"):
        publish(run, TO, **FAST)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "canary-wrong")
    with pytest.raises(KaggleError, match="did not take the token of KAGGLE_API_TOKEN: make a token at") as caught:
        publish(run, TO, **FAST)
    assert "canary" not in str(caught.value)
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    with pytest.raises(KaggleError, match="no Kaggle credentials: make a token at"):
        publish(run, TO, **FAST)
    monkeypatch.setenv("KAGGLE_USERNAME", fakes.USER)
    monkeypatch.setenv("KAGGLE_KEY", "canary-wrong")
    with pytest.raises(KaggleError, match="did not take KAGGLE_USERNAME and KAGGLE_KEY"):
        publish(run, TO, **FAST)
    monkeypatch.setenv("KAGGLE_KEY", CANARIES[1])
    cloud.kaggle.refused.clear()
    assert publish(run, TO, **FAST).place.version == 1


def test_what_is_not_there_is_told(cloud, run):
    with pytest.raises(UserError, match=r"kaggle:me/nothing-here: not there, or not for ornithologist; look at https"):
        birdtpu.load("kaggle:me/nothing-here")
    with pytest.raises(UserError, match="no address on Kaggle"):
        birdtpu.load("kaggle:nothing")
    publish(run, TO, **FAST)
    with pytest.raises(KaggleError, match=r"versions/7: not there"):
        birdtpu.load(f"kaggle:{TO}/versions/7")


def test_a_download_that_broke_off_goes_on(cloud, run):
    publish(run, TO, **FAST)
    spans, answer = [], cloud.answer

    def noted(request):
        if request.host == fakes.DOWNLOADS:
            spans.append(request.headers.get("range", ""))
        return answer(request)

    cloud.answer = noted
    cloud.faults.append(Fault("truncate", "GET down"))
    places.resolve(f"kaggle:{TO}")
    assert [span for span in spans if re.fullmatch(r"bytes=[1-9]\d*-", span)] == spans[-1:]


def test_addresses():
    assert str(places.parse("kaggle:a/b-c")) == "kaggle:a/b-c"
    assert str(places.parse("a/b-c/versions/3")) == "kaggle:a/b-c/versions/3"
    assert places.parse("kaggle:a/b/keras/c/4").version == 4
    assert target("a/bird-model", True, "birdcall2020 X").variation == "birdcall2020-x"


def test_attached_folders_and_given_paths_come_first(tmp_path):
    home = tmp_path / "kaggle" / "input"
    for name in ("dawn-chorus", "datasets/me/other-set", "m/keras/v/1", "m/keras/v/2"):
        (home / name).mkdir(parents=True)
    for address, found in {
        "kaggle:me/dawn-chorus": "dawn-chorus",
        "kaggle:me/dawn-chorus=gs://kds-1": "dawn-chorus",
        "kaggle:me/other-set": "datasets/me/other-set",
        "kaggle:me/m/keras/v": "m/keras/v/2",
        "kaggle:me/m/keras/v/1": "m/keras/v/1",
    }.items():
        assert places.resolve(address, root=tmp_path) == str(home / found)
    assert places.resolve("kaggle:me/elsewhere=gs://kds-1/x", root=tmp_path) == "gs://kds-1/x"
    assert places.resolve("prepared/", root=tmp_path) == "prepared/"


def test_a_dead_server_ends_in_one_line(tmp_path, run):
    """No route to Kaggle, in a process of its own: nothing but one line, and no secret in it."""
    environment = {**os.environ, **fakes.private(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "birdtpu", "publish", run.folder, "--to", TO]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and re.fullmatch(r"birdtpu: .*Kaggle gave no answer \(\w+\).*\n", done.stderr)
    assert not any(secret in done.stdout + done.stderr for secret in CANARIES)


def test_a_client_is_closed(cloud):
    with Kaggle() as kaggle:
        assert kaggle.user == fakes.USER
