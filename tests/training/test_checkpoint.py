"""Checkpoints: what is saved is read back, what is damaged is seen."""

import random
import warnings

import numpy as np
import pytest

from birdtpu.errors import UserError
from birdtpu.training.checkpoint import Checkpoint, Checkpoints

RNG = np.random.default_rng(0)


def checkpoint(step: int) -> Checkpoint:
    arrays = {
        "step": np.int64(step),
        "weights/0000": RNG.standard_normal((3, 4)).astype(np.float32),
        "weights/0001": np.full((2,), step, np.int32),
        "ema/0000": np.zeros((0, 4), np.float32),
        "optimizer/0000": RNG.standard_normal((3, 4)).T.astype(np.float32),
    }
    return Checkpoint(step, arrays, {"losses": [0.1, float(np.float32(0.3))], "rows": [{"loss": float("nan")}]})


def saved(folder, *steps: int) -> tuple[Checkpoints, dict[int, Checkpoint]]:
    checkpoints, made = Checkpoints(str(folder)), {step: checkpoint(step) for step in steps}
    for step in steps:
        checkpoints.save(made[step])
    return checkpoints, made


def files(folder) -> list:
    return sorted((folder / "checkpoints").iterdir())


def assert_same(found: Checkpoint, truth: Checkpoint) -> None:
    assert found.step == truth.step and found.arrays.keys() == truth.arrays.keys()
    for name, array in truth.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    assert found.notes["losses"] == truth.notes["losses"] and np.isnan(found.notes["rows"][0]["loss"])


def test_what_is_saved_is_read_back_and_two_are_kept(tmp_path):
    checkpoints, made = saved(tmp_path, 3, 10, 200)
    assert_same(checkpoints.newest(), made[200])
    assert [name.name[:13] for name in files(tmp_path)] == ["step-00000010", "step-00000200"]


def test_an_empty_run_has_none(tmp_path):
    assert Checkpoints(str(tmp_path)).newest() is None
    Checkpoints(str(tmp_path)).clear()
    assert not list(tmp_path.iterdir())


def test_a_hundred_million_steps_sort_as_numbers(tmp_path):
    checkpoints, made = saved(tmp_path, 99_999_999, 100_000_000)
    assert_same(checkpoints.newest(), made[100_000_000])


def test_a_damaged_newest_one_falls_back_and_is_taken_over(tmp_path):
    checkpoints, made = saved(tmp_path, 5, 6)
    newest = files(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f"{newest.name}: damaged, and passed over"):
        assert_same(checkpoints.newest(), made[5])
    # The training that is taken up from 5 saves 6 anew, and then the damaged one must not come back.
    again = checkpoint(6)
    checkpoints.save(again)
    assert_same(checkpoints.newest(), again)
    assert newest not in files(tmp_path) and len(files(tmp_path)) == 2


def test_whole_ones_are_kept_and_not_damaged_ones(tmp_path):
    checkpoints, made = saved(tmp_path, 4, 5)
    files(tmp_path)[-1].write_bytes(b"half")
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(checkpoints.newest(), made[4])
    checkpoints.save(checkpoint(6))
    files(tmp_path)[-1].write_bytes(b"half")
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(checkpoints.newest(), made[4])


def test_no_whole_one_is_an_error_with_a_way_out(tmp_path):
    checkpoints, _ = saved(tmp_path, 5, 6)
    for path in files(tmp_path):
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="no checkpoint is whole; remove the folder"):
        checkpoints.newest()


def test_what_a_killed_write_left_is_swept_and_other_files_stay(tmp_path):
    checkpoints, made = saved(tmp_path, 5)
    left = tmp_path / "checkpoints" / ".step-00000006-0.safetensors.0123abcd.tmp"
    left.write_bytes(b"half")
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert_same(checkpoints.newest(), made[5])
    checkpoints.save(checkpoint(7))
    assert [path.name[:13] for path in files(tmp_path)] == ["notes.txt", "step-00000005", "step-00000007"]
    left.write_bytes(b"half")
    checkpoints.clear()
    assert [path.name for path in files(tmp_path)] == ["notes.txt"]


def damage(path, chance: random.Random) -> None:
    """Flip bits, cut, lengthen, empty, overwrite a stretch, or rename."""
    data, kind = (
        bytearray(path.read_bytes()),
        chance.choice(["flip", "cut", "longer", "empty", "stretch", "step", "sum"]),
    )
    if kind == "flip":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[chance.randrange(len(data)) :]
    elif kind == "longer":
        data += chance.randbytes(chance.randint(1, 64))
    elif kind == "empty":
        data.clear()
    elif kind == "stretch":
        start = chance.randrange(len(data) - 8)
        data[start : start + 8] = bytes(byte ^ 0xFF for byte in data[start : start + 8])
    name = path.name
    if kind == "step":
        name = f"step-{int(name[5:13]) + chance.randint(1, 9):08d}{name[13:]}"
    elif kind == "sum":
        name = name[:14] + chance.choice("0123456789abcdef".replace(name[14], "")) + name[15:]
    path.unlink()
    path.with_name(name).write_bytes(data)


def test_a_thousand_corruptions_are_seen_and_fall_back(tmp_path):
    chance = random.Random(0)
    checkpoints, made = saved(tmp_path, 5, 6)
    whole = {path.name: path.read_bytes() for path in files(tmp_path)}
    for _ in range(1000):
        damage(files(tmp_path)[-1], chance)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_same(checkpoints.newest(), made[5])
        assert len(caught) == 1 and "damaged" in str(caught[0].message)
        for path in files(tmp_path):
            path.unlink()
        for name, data in whole.items():
            (tmp_path / "checkpoints" / name).write_bytes(data)
