"""Runs as members of an ensemble: what must agree, and what follows from all of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from birdtpu.errors import UserError
from birdtpu.inference import ensemble
from birdtpu.recipe import load_recipe
from birdtpu.run import Run
from birdtpu.species import ClassList


def run(folder, *codes, settings=()):
    return Run(str(folder), load_recipe("quickstart", list(settings)), ClassList(codes or ("crow", "owl", "wren")))


def test_classes_in_another_order_are_aligned():
    runs = [run("a"), run("b", "wren", "crow", "owl")]
    ensemble.check_members(runs)
    for member, columns in zip(runs, ensemble.columns_of(runs), strict=True):
        assert [member.classes.codes[i] for i in columns] == ["crow", "owl", "wren"]


def test_other_species_are_named_with_both_runs():
    message = r"runs a and b: not the same species: only a knows crow, owl, only b knows jay, kite, lark and 1 more; "
    with pytest.raises(UserError, match=message):
        ensemble.check_members([run("a"), run("b", "wren", "lark", "kite", "jay", "rook")])
    with pytest.raises(UserError, match="only c knows rook; "):
        ensemble.check_members([run("a"), run("b"), run("c", "crow", "owl", "wren", "rook")])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("audio.sample_rate=44100", "audio.sample_rate: 32000 in run a, but 44100 in run b"),
        ("audio.channel=left", "audio.channel: mix in run a, but left in run b"),
        ("audio.clip_seconds=4.0", "audio.clip_seconds: 5.0 in run a, but 4.0 in run b"),
        ("predict.hop_seconds=5.0", "predict.hop_seconds: 2.5 in run a, but 5.0 in run b"),
    ],
)
def test_members_that_cannot_share_clips_are_named(setting, message):
    with pytest.raises(UserError, match=message):
        ensemble.check_members([run("a"), run("b", settings=[setting])])


def test_a_run_given_twice_and_no_run_are_refused():
    with pytest.raises(UserError, match="run a: given twice"):
        ensemble.check_members([run("a"), run("b"), run("a")])
    with pytest.raises(UserError, match="no run given"):
        ensemble.check_members([])


def test_heads_must_agree_unless_one_is_given():
    runs = [run("a"), run("b", settings=["predict.head=clipwise"])]
    with pytest.raises(UserError, match=r"predict\.head: segmentwise in run a, but clipwise in run b; give a head"):
        ensemble.common_head(runs, None)
    assert ensemble.common_head(runs, "attention") == "attention"
    assert ensemble.common_head(runs[1:], None) == "clipwise"
    with pytest.raises(UserError, match="head 'framewise': one of clipwise"):
        ensemble.common_head(runs, "framewise")


def test_weights_become_shares():
    runs = [run("a"), run("b"), run("c")]
    np.testing.assert_allclose(ensemble.shares_of(runs, None), [1 / 3] * 3)
    np.testing.assert_allclose(ensemble.shares_of(runs, [2, 1, 1]), [0.5, 0.25, 0.25])
    with pytest.raises(UserError, match=r"weights 2,1: 2 for 3 runs \(a, b, c\)"):
        ensemble.shares_of(runs, [2, 1])
    for wrong in ([1, 1, 0], [1, -1, 1], [1, 1, float("nan")], [1, 1, float("inf")]):
        with pytest.raises(UserError, match="each must be above 0"):
            ensemble.shares_of(runs, wrong)


def test_thresholds_are_the_members_weighted_mean_by_species(tmp_path):
    runs = [run(tmp_path / "a"), run(tmp_path / "b", "wren", "crow", "owl")]
    Path(runs[1].folder).mkdir()
    saved = {"segmentwise": {"wren": 0.1, "crow": 0.5}}
    Path(runs[1].folder, "thresholds.json").write_text(json.dumps(saved))
    got = ensemble.mean_thresholds(runs, "segmentwise", np.array([0.75, 0.25]))
    # The recipes say 0.9 where nothing is saved.
    np.testing.assert_allclose(got, [0.75 * 0.9 + 0.25 * 0.5, 0.9, 0.75 * 0.9 + 0.25 * 0.1])
    assert (ensemble.mean_thresholds(runs[:1] * 7, "segmentwise", np.full(7, 1 / 7)) == 0.9).all()
