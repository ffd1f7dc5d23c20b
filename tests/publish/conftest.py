"""A run to publish."""

import json

import pytest

from birdtpu.models.build import SoundEventModel
from birdtpu.recipe import load_recipe
from birdtpu.run import Run
from birdtpu.species import ClassList

TINY = ["frontend.n_mels=32", "model.features=8", "audio.clip_seconds=2.0", "predict.hop_seconds=1.0"]


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of two species, with an evaluation."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    recipe = load_recipe("quickstart", TINY)
    classes = ClassList(("eurbla", "eurrob1"), ("Turdus merula", "Erithacus rubecula"), ("Blackbird", "Robin"))
    info = {"version": "1", "data": ["/home/alice/secret/prepared"], "data_crc32c": ["0"], "fold": "0"}
    # What a run notes of where things lay.
    info |= {"unlabelled": ["/home/alice/night"], "init_from": "/home/alice/first/"}
    info |= {"pseudo": "/home/alice/p.npz", "teacher": "/home/alice/t.npz"}
    made = Run(str(folder), recipe, classes, {**info, "backend": "tensorflow"})
    made = made.save_weights(SoundEventModel(recipe, 2, weights="none").network)
    (folder / "evaluation").mkdir()
    score = {"value": 0.912, "low": 0.8, "high": 0.97}
    content = {"macro_average_precision": score, "n_recordings": 36}
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(content))
    return made
