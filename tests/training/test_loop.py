"""The loop, its log and its checkpoints."""

import contextlib
import json
import os
import signal
import threading

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from birdtpu.errors import Stopped, UserError
from birdtpu.keys import Train
from birdtpu.training.checkpoint import Checkpoint, Checkpoints
from birdtpu.training.log import Log
from birdtpu.training.loop import Progress, Saving, Validation, fit


class FakeStep:
    """Counts, and returns losses; its weight is the number of steps."""

    def __init__(self, losses, at=lambda done: None):
        self.losses, self.done, self.calls, self.at = losses, 0, [], at
        self.scaled = []

    def feed(self, batches):
        return iter(batches)

    def run(self, feed, count):
        for _ in range(count):
            next(feed)
        self.calls.append((self.done, count))
        self.done += count
        self.at(self.done)
        return np.array(self.losses[self.done - count : self.done])

    def scale_rate(self, factor):
        self.scaled.append((self.done, factor))

    def averaged(self):
        return [np.full(1, self.done)]

    def state(self):
        return {"step": np.int64(self.done), "weights/0000": np.full(3, self.done, np.float32)}

    def restore(self, state):
        self.done = int(state["step"])


def run(step, tmp_path, batches=10, **changes):
    options = {"steps": 6, "steps_per_epoch": 2, "batch_size": 8, "learning_rate": lambda i: 0.1}
    options["log"] = Log(str(tmp_path))
    knobs = {key: changes.pop(key) for key in list(changes) if key in Train.model_fields and key not in options}
    options["train"] = Train(**knobs)
    return fit(step, iter([{}] * batches), **(options | changes)), (options | changes)["log"]


def test_the_loop_takes_any_iterator_and_logs_every_epoch(tmp_path):
    weights, log = run(FakeStep([6.0, 5, 4, 3, 2, 1]), tmp_path)
    assert weights[0] == 6
    assert [row.loss for row in log.rows] == [5.5, 3.5, 1.5]
    assert [row.step for row in log.rows] == [2, 4, 6]
    log.close()
    assert (tmp_path / "log.csv").read_text().startswith("epoch,step,loss,validation_loss")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((tmp_path / "tensorboard").iterdir())


def held_out(losses):
    """A `validate` that says these losses, one an epoch."""
    said = iter(losses)

    def validate(_):
        loss = next(said)
        return Validation(loss, loss / 2, loss * 2, loss)

    return validate


def test_the_best_epoch_is_kept_and_patience_ends_training(tmp_path):
    step = FakeStep([1.0] * 10)
    weights, log = run(step, tmp_path, steps=10, validate=held_out([3.0, 1.0, 2.0, 2.5, 9.0]), patience=2)
    assert weights[0] == 4 and step.done == 8 and len(log.rows) == 4
    assert [(row.validation_loss, row.validation_present_loss, row.validation_absent_loss) for row in log.rows[:2]] == [
        (3.0, 1.5, 6.0), (1.0, 0.5, 2.0),
    ]  # fmt: skip


def test_the_learning_rate_falls_where_the_validation_loss_stands_still(tmp_path):
    step, losses = FakeStep([1.0] * 20), [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 0.5, 1.0, 1.0, 1.0]
    options = {"steps": 20, "plateau_epochs": 2, "plateau_factor": 0.5, "patience": 9}
    weights, log = run(step, tmp_path, batches=20, validate=held_out(losses), **options)
    # Two epochs after the best one, two after it was lowered, and two after the next best.
    assert step.scaled == [(8, 0.5), (12, 0.5), (18, 0.5)] and weights[0] == 14
    assert [row.learning_rate for row in log.rows] == pytest.approx([0.1] * 4 + [0.05] * 2 + [0.025] * 3 + [0.0125])


def test_a_lowered_learning_rate_outlives_the_process(tmp_path):
    step, options = FakeStep([1.0] * 8), {"steps": 8, "plateau_epochs": 1, "plateau_factor": 0.1}
    checkpoint = Progress(4, best=[np.ones(1)], best_loss=1.0, best_epoch=1, lowered=1, lowered_epoch=2).to_checkpoint(
        step, Log(str(tmp_path))
    )
    log = Log(str(tmp_path))
    progress = Progress.of(checkpoint, step, log)
    step.done = 4
    run(step, tmp_path, log=log, progress=progress, validate=held_out([2.0, 0.5]), **options)
    assert [row.learning_rate for row in log.rows] == pytest.approx([0.01, 0.001]) and step.scaled == [(6, 0.1)]


def test_a_loss_that_is_no_number_ends_training_and_is_not_saved(tmp_path):
    saving = Saving(Checkpoints(str(tmp_path)), steps=1)
    with pytest.raises(UserError, match=r"nan in epoch 2: lower train\.learning_rate"):
        run(FakeStep([1.0, 1.0, float("nan"), 1.0]), tmp_path, saving=saving)
    assert saving.checkpoints.newest().step == 2


def test_weights_and_validation_losses_that_are_no_numbers_end_training(tmp_path):
    class Lost(FakeStep):
        def averaged(self):
            return [np.full(1, np.nan)]

    with pytest.raises(UserError, match=r"a weight is no number after step 6: lower train\.learning_rate"):
        run(Lost([1.0] * 6), tmp_path)
    with pytest.raises(UserError, match=r"the validation loss is nan in epoch 1: lower train\.learning_rate"):
        run(FakeStep([1.0] * 6), tmp_path, validate=held_out([float("nan")]))


def test_patience_needs_something_held_out(tmp_path):
    weights, log = run(FakeStep([1.0] * 6), tmp_path, patience=1)
    assert weights[0] == 6 and len(log.rows) == 3


def test_a_checkpoint_of_another_version_is_named(tmp_path):
    checkpoint = Checkpoint(1, FakeStep([1.0]).state(), {"losses": []})
    with pytest.raises(ValueError, match="a checkpoint of another version of birdtpu"):
        Progress.of(checkpoint, FakeStep([1.0]), Log(str(tmp_path)))


def test_batches_that_end_early_are_an_error(tmp_path):
    with pytest.raises(UserError, match="ended after 10 of 20"):
        run(FakeStep([1.0] * 20), tmp_path, steps=20)


def test_calls_end_with_their_epoch_wherever_training_is_taken_up(tmp_path):
    whole = FakeStep([1.0] * 10)
    run(whole, tmp_path, steps=10, steps_per_epoch=5, steps_per_call=2)
    assert whole.calls == [(0, 2), (2, 2), (4, 1), (5, 2), (7, 2), (9, 1)]
    rest = FakeStep([1.0] * 10)
    rest.done = 7
    run(rest, tmp_path, steps=10, steps_per_epoch=5, steps_per_call=2, progress=Progress(7, [1.0] * 2))
    assert rest.calls == whole.calls[4:]


def taken_up(tmp_path, step, **changes):
    """One process's part of a training: what is saved is restored, then it goes on."""
    saving = Saving(Checkpoints(str(tmp_path)), **changes.pop("saving", {}))
    log, found = Log(str(tmp_path)), saving.checkpoints.newest()
    progress = Progress.of(found, step, log) if found else Progress()
    return run(step, tmp_path, log=log, progress=progress, saving=saving, **changes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_next_process_goes_on(tmp_path, number):
    def at(done):
        if done == 3:
            os.kill(os.getpid(), number)

    losses = [6.0, 5, 4, 3, 2, 1]
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 3; the same command") as stopped:
        taken_up(tmp_path, FakeStep(losses, at))
    assert stopped.value.number == number and signal.getsignal(number) == before
    step = FakeStep(losses)
    _, log = taken_up(tmp_path, step)
    assert step.calls == [(3, 1), (4, 1), (5, 1)]
    assert [row.loss for row in log.rows] == [5.5, 3.5, 1.5] and [row.epoch for row in log.rows] == [1, 2, 3]


@pytest.mark.parametrize("steps", [6, 20])
def test_a_signal_while_the_last_epoch_is_validated_stops_and_is_saved(tmp_path, steps):
    signals = [6]

    def validate(weights):
        done = int(weights[0][0])
        if done in signals:
            signals.remove(done)
            os.kill(os.getpid(), signal.SIGTERM)
        return held_out([float(done != 2)])(weights)

    # The training's last epoch, or the one that patience ends with.
    options = {"steps": steps, "patience": 2, "batches": 20, "validate": validate}
    with pytest.raises(Stopped, match="after step 6"):
        taken_up(tmp_path, FakeStep([1.0] * 20), **options)
    step = FakeStep([1.0] * 20)
    weights, log = taken_up(tmp_path, step, **options)
    assert step.calls == [] and weights[0] == 2 and len(log.rows) == 3


def test_three_interruptions_inside_one_epoch_run_the_planned_steps(tmp_path):
    stops = {2, 4, 5}

    def at(done):
        if done in stops:
            stops.remove(done)
            os.kill(os.getpid(), signal.SIGTERM)

    seen = []
    for _ in range(4):
        step = FakeStep([float(i) for i in range(8)], at)
        with contextlib.suppress(Stopped):
            _, log = taken_up(tmp_path, step, steps=8, steps_per_epoch=8)
        seen += step.calls
    assert seen == [(i, 1) for i in range(8)]
    assert [row.loss for row in log.rows] == [3.5]


def test_the_best_weights_and_patience_survive_an_interruption(tmp_path):
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5}

    def at(done):
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"steps": 20, "patience": 2, "batches": 20, "validate": lambda w: held_out([losses[int(w[0][0])]])(w)}
    with pytest.raises(Stopped):
        taken_up(tmp_path, FakeStep([1.0] * 20, at), **options)
    step = FakeStep([1.0] * 20)
    weights, log = taken_up(tmp_path, step, **options)
    assert weights[0] == 4 and step.done == 8 and len(log.rows) == 4


def test_a_killed_process_after_the_last_epoch_of_patience_does_not_train_on(tmp_path):
    step = FakeStep([1.0] * 20)
    progress = Progress(8, [], 0.0, [np.full(1, 4)], 1.0, 2)
    weights, _ = run(step, tmp_path, steps=20, patience=2, progress=progress)
    assert step.calls == [] and weights[0] == 4


def test_checkpoints_come_by_steps_and_by_time(tmp_path):
    saved = []

    class Watched(Checkpoints):
        def save(self, checkpoint):
            saved.append(checkpoint.step)

    run(FakeStep([1.0] * 6), tmp_path, saving=Saving(Watched(str(tmp_path)), steps=2))
    run(FakeStep([1.0] * 6), tmp_path, saving=Saving(Watched(str(tmp_path)), seconds=0))
    run(FakeStep([1.0] * 6), tmp_path, saving=Saving(Watched(str(tmp_path))))
    assert saved == [2, 4, 6, 1, 2, 3, 4, 5, 6]


def test_a_full_disk_ends_training_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def at(done):
        if done == 3:
            monkeypatch.setattr("os.fsync", full)

    with pytest.raises(UserError, match="No space left"):
        taken_up(tmp_path, FakeStep([1.0] * 6, at), saving={"steps": 1})
    monkeypatch.undo()
    assert Checkpoints(str(tmp_path)).newest().step == 2
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if name.endswith(".tmp")]


def test_training_off_the_main_thread_leaves_signals_alone(tmp_path):
    out = []
    thread = threading.Thread(target=lambda: out.append(taken_up(tmp_path, FakeStep([1.0] * 6))))
    thread.start()
    thread.join()
    assert len(out) == 1


def test_without_a_terminal_there_are_lines_and_no_bar(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("birdtpu.training.loop._LINE_SECONDS", 0)
    run(FakeStep([1.0] * 6), tmp_path, steps_per_epoch=3)
    out, err = capfd.readouterr()
    assert "\r" not in out + err and err == ""
    assert [line.split()[0] for line in out.splitlines()] == ["step", "epoch", "step", "epoch"]
    assert out.startswith("step 2/6  loss 1.0000")


def test_a_restored_log_begins_after_its_rows(tmp_path):
    _, log = run(FakeStep([1.0] * 6), tmp_path)
    rows = json.loads(json.dumps(log.state()))
    again = Log(str(tmp_path))
    again.restore(rows[:2])
    step = FakeStep([1.0] * 6)
    step.done = 4
    run(step, tmp_path, log=again, progress=Progress(4))
    assert [row.epoch for row in again.rows] == [1, 2, 3]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    # TensorBoard shows the second process from where it began.
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    for name in (log, again):
        name.close()
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [(2, 1.0), (4, 1.0), (6, 1.0)]
