"""The training loop: any batches, any step, taken up where it was stopped."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from birdtpu.errors import Stopped, UserError
from birdtpu.keys import Train
from birdtpu.training.checkpoint import Checkpoint, Checkpoints
from birdtpu.training.log import Epoch, Log
from birdtpu.training.step import Step

Weights = list[np.ndarray]
# Without a terminal there is no bar: a line so often says that the training is alive.
_LINE_SECONDS = 60


@dataclass(frozen=True)
class Saving:
    """When a checkpoint is written, beside SIGTERM and Ctrl-C.

    Args:
        checkpoints: Where to.
        seconds: Time between two.
        steps: Steps between two; 0 counts only the time.
        identity: What JSON can hold of the training that is saved, put into each.
    """

    checkpoints: Checkpoints
    seconds: float = 600.0
    steps: int = 0
    identity: dict[str, Any] = field(default_factory=dict)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one, with the identity among its notes."""
        self.checkpoints.save(replace(checkpoint, notes={**checkpoint.notes, "identity": self.identity}))


class Validation(NamedTuple):
    """Losses on what is held out: the recipe's, the cross-entropies apart, and the one that shall get better."""

    loss: float
    present_loss: float
    absent_loss: float
    watched: float


@dataclass
class Progress:
    """What the loop remembers beside the step's own state.

    Args:
        done: Steps done.
        losses: Those of the epoch that is on.
        seconds: Its time in earlier processes.
        best, best_loss, best_epoch: Of the validation part.
        lowered: How often the learning rate was lowered.
        lowered_epoch: When, last.
    """

    done: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    best: Weights | None = None
    best_loss: float = math.inf
    best_epoch: int = 0
    lowered: int = 0
    lowered_epoch: int = 0

    def to_checkpoint(self, step: Step, log: Log) -> Checkpoint:
        """All that a new process needs to go on to the same result."""
        best = {f"best/{i:04d}": value for i, value in enumerate(self.best or [])}
        notes = {"losses": self.losses, "seconds": self.seconds, "best_epoch": self.best_epoch, "rows": log.state()}
        notes |= {"lowered": self.lowered, "lowered_epoch": self.lowered_epoch}
        if self.best is not None:
            notes["best_loss"] = self.best_loss
        state = step.state()
        _check_weights(state.values(), self.done)
        return Checkpoint(self.done, {**state, **best}, notes)

    @classmethod
    def of(cls, checkpoint: Checkpoint, step: Step, log: Log) -> "Progress":
        """Bring step and log to where they were at `to_checkpoint`. Raises ValueError where they do not fit."""
        notes = checkpoint.notes
        best = [value for name, value in sorted(checkpoint.arrays.items()) if name.startswith("best/")]
        try:
            step.restore(checkpoint.arrays)
            log.restore(notes["rows"])
            best_loss = notes.get("best_loss", math.inf)
            rest = [notes[key] for key in ("best_epoch", "lowered", "lowered_epoch")]
            return cls(checkpoint.step, notes["losses"], notes["seconds"], best or None, best_loss, *rest)
        except (KeyError, TypeError) as error:
            raise ValueError(f"a checkpoint of another version of birdtpu ({error})") from error


def fit(
    step: Step,
    batches: Iterable[dict[str, Any]],
    *,
    steps: int,
    steps_per_epoch: int,
    batch_size: int,
    learning_rate: Callable[[int], float],
    log: Log,
    validate: Callable[[Weights], Validation] | None = None,
    train: Train,
    progress: Progress | None = None,
    saving: Saving | None = None,
    steps_per_call: int = 1,
) -> Weights:
    """Train and return the weights to keep.

    Args:
        step: What a step is.
        batches: For `step.feed`, from the first step that is not done.
        steps, steps_per_epoch: How many in all and between two rows of the log.
        batch_size: Rows of a step, for clips/s.
        learning_rate: Of a step, for the log.
        log: Where the epochs are written.
        validate: Averaged weights -> losses on what is held out; then the best epoch's weights are kept, else the
            last's.
        train: The recipe's, for `patience`, `plateau_epochs` and `plateau_factor`.
        progress: Where `step` and `log` stand; None: at the start. Changed in place.
        saving: None saves nothing and leaves signals alone.
        steps_per_call: Calls begin at the same steps however often a training is taken up: bits depend on it.

    Returns: averaged weights, in the order of the network's variables.
    Raises: UserError where the loss is no longer finite, or the batches end early; Stopped after a signal.
    """
    from tqdm.auto import tqdm

    patience = train.patience
    now = progress if progress is not None else Progress()
    feed, last, spoken, saved, saved_step = step.feed(batches), None, *([time.perf_counter()] * 2), now.done
    began = time.perf_counter() - now.seconds
    epochs = -(-steps // steps_per_epoch)
    bar = tqdm(total=steps * batch_size, initial=now.done * batch_size, unit=" clips", unit_scale=True, disable=None)
    with bar, _signals(saving is not None) as asked:
        while now.done < steps and not _is_over(now, steps_per_epoch, patience):
            count = min(steps_per_call, steps - now.done, steps_per_epoch - now.done % steps_per_epoch)
            try:
                losses = step.run(feed, count)
            except StopIteration:
                raise UserError(f"training data ended after {now.done} of {steps} steps") from None
            if last is not None:
                # Asking for losses waits for the device: for the call before, so that one is always under way.
                now.losses += np.asarray(last).tolist()
            last = losses
            now.done += count
            bar.update(count * batch_size)
            clock = time.perf_counter()
            ends = now.done % steps_per_epoch == 0 or now.done == steps
            due = saving is not None and (
                bool(asked) or clock - saved >= saving.seconds or 0 < saving.steps <= now.done - saved_step
            )
            if ends or due:
                now.losses += np.asarray(last).tolist()
                last = None
                now.seconds = time.perf_counter() - began
                _check(now, steps_per_epoch)
            if ends:
                tqdm.write(
                    _end_epoch(now, step, log, validate, learning_rate, steps_per_epoch, batch_size, epochs, train)
                )
                began = time.perf_counter()
                if _is_over(now, steps_per_epoch, patience):
                    tqdm.write(
                        f"no better validation loss for {patience} epochs: stopping, epoch {now.best_epoch} is kept"
                    )
            elif bar.disable and clock - spoken >= _LINE_SECONDS and now.losses:
                spoken = clock
                speed = len(now.losses) * batch_size / (clock - began)
                tqdm.write(f"step {now.done}/{steps}  loss {np.mean(now.losses[-50:]):.4f}  {speed:.0f} clips/s")
            # A signal may have come while the epoch was validated; its losses are all in.
            if saving is not None and (due or (ends and asked)):
                saving.save(now.to_checkpoint(step, log))
                saved, saved_step = time.perf_counter(), now.done
                if asked:
                    raise Stopped(asked[0], f"step {now.done}")
    weights = step.averaged() if now.best is None else now.best
    _check_weights(weights, now.done)
    return weights


def _is_over(now: Progress, steps_per_epoch: int, patience: int) -> bool:
    """Whether the last epoch that ended was one too many without a better validation loss."""
    if now.best is None:  # Nothing is held out, or no epoch has ended.
        return False
    ended = now.done > 0 and now.done % steps_per_epoch == 0
    return bool(patience) and ended and now.done // steps_per_epoch - now.best_epoch >= patience


def _check(now: Progress, steps_per_epoch: int) -> None:
    """A state that is lost is never saved over one that is not."""
    wrong = [loss for loss in now.losses if not math.isfinite(loss)]
    if wrong:
        epoch = -(-now.done // steps_per_epoch)
        raise UserError(f"the loss is {wrong[0]} in epoch {epoch}: lower train.learning_rate or set train.clip_norm")


def _check_weights(weights: Iterable[Any], done: int) -> None:
    """Gradients of the last step may have been no numbers although its loss was one."""
    if not all(np.isfinite(array).all() for array in weights):
        raise UserError(f"a weight is no number after step {done}: lower train.learning_rate or set train.clip_norm")


def _end_epoch(
    now: Progress,
    step: Step,
    log: Log,
    validate: Callable[[Weights], Validation] | None,
    learning_rate: Callable[[int], float],
    steps_per_epoch: int,
    batch_size: int,
    epochs: int,
    train: Train,
) -> str:
    """Validate, write the epoch down, begin the next; returns its line."""
    began = time.perf_counter()
    epoch, loss, speed = -(-now.done // steps_per_epoch), float(np.mean(now.losses)), len(now.losses) * batch_size
    speed /= max(now.seconds, 1e-9)
    held_out = Validation(*[math.nan] * 4)
    rate = learning_rate(now.done - 1) * train.plateau_factor**now.lowered
    lowered = ""
    if validate is not None:
        weights = step.averaged()
        held_out = validate(weights)
        if not math.isfinite(held_out.watched):
            raise UserError(
                f"the validation loss is {held_out.watched} in epoch {epoch}: lower train.learning_rate or set "
                "train.clip_norm"
            )
        if held_out.watched < now.best_loss:
            now.best, now.best_loss, now.best_epoch = weights, held_out.watched, epoch
        elif train.plateau_epochs and epoch - max(now.best_epoch, now.lowered_epoch) >= train.plateau_epochs:
            step.scale_rate(train.plateau_factor)
            now.lowered, now.lowered_epoch = now.lowered + 1, epoch
            lowered = f"  learning rate lowered to {train.plateau_factor**now.lowered:.3g} of its schedule"
    seconds = now.seconds + time.perf_counter() - began
    losses = loss, held_out.loss, held_out.present_loss, held_out.absent_loss
    log.add(Epoch(epoch, now.done, *losses, rate, speed, seconds))
    now.losses, now.seconds = [], 0.0
    text = f"epoch {epoch:3d}/{epochs}  loss {loss:.4f}"
    text += "" if validate is None else f"  validation {held_out.loss:.4f}"
    return f"{text}  {speed:.0f} clips/s  {seconds:.0f} s{lowered}"


@contextlib.contextmanager
def _signals(wanted: bool) -> Iterator[list[int]]:
    """A list that gets the number of the first SIGTERM or Ctrl-C; the second has its usual effect."""
    asked: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
