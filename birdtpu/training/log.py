"""What a training run writes down: a CSV, TensorBoard's event files and the learning curves."""

import csv
import io
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from birdtpu import storage
from birdtpu.data.records import frame


@dataclass(frozen=True)
class Epoch:
    """One row of the log.

    Validation losses are NaN where nothing is held out; those of what is present and of what is absent are plain
    cross-entropies.
    """

    epoch: int
    step: int
    loss: float
    validation_loss: float
    validation_present_loss: float
    validation_absent_loss: float
    learning_rate: float
    clips_per_second: float
    seconds: float


class Log:
    """Rows of `Epoch` in a run folder: `log.csv`, `tensorboard/`, `curves.png`.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.rows: list[Epoch] = []
        self._events: list[Any] = []
        self._events_name = ""

    def state(self) -> list[dict[str, Any]]:
        """The rows, for `restore`; JSON can hold them, NaN among them."""
        return [asdict(row) for row in self.rows]

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """Begin after these rows, whatever an earlier process wrote behind them."""
        self.rows = [Epoch(**row) for row in rows]

    def add(self, row: Epoch) -> None:
        """Write one epoch down."""
        self.rows.append(row)
        out = io.StringIO()
        table = csv.DictWriter(out, asdict(row), lineterminator="\n")
        table.writeheader()
        table.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(r).items()} for r in self.rows)
        storage.write_text(storage.join(self.folder, "log.csv"), out.getvalue())
        self._add_events(row)

    def close(self) -> None:
        """Draw the curves."""
        if self.rows:
            self._draw()

    def _add_events(self, row: Epoch) -> None:
        # tensorboardX's own writer hands them to a thread, and waits for ever where that one met a full disk.
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

        now = time.time()
        if not self._events:
            self._events_name = f"events.out.tfevents.{now:.6f}.birdtpu"
            # What an interrupted process wrote of this step and later ones is not shown.
            start = Event(wall_time=now, step=row.step, session_log=SessionLog(status=SessionLog.START))
            self._events = [Event(wall_time=now, file_version="brain.Event:2"), start]
        names = [name for name in asdict(row) if name not in ("epoch", "step", "seconds")]
        values = {name: getattr(row, name) for name in names if not math.isnan(getattr(row, name))}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._events.append(Event(wall_time=now, step=row.step, summary=summary))
        data = b"".join(frame(event.SerializeToString()) for event in self._events)
        storage.write_bytes(storage.join(self.folder, "tensorboard", self._events_name), data)

    def _draw(self) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        epochs = [row.epoch for row in self.rows]
        axes.plot(epochs, [row.loss for row in self.rows], color="#0072B2", label="training")
        if any(not math.isnan(row.validation_loss) for row in self.rows):
            axes.plot(epochs, [row.validation_loss for row in self.rows], color="#D55E00", label="validation")
        axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
        rates = axes.twinx()
        rates.plot(epochs, [row.learning_rate for row in self.rows], color="0.6", linestyle="--", linewidth=1)
        rates.set_ylabel("learning rate (dashed)", color="0.4")
        rates.tick_params(colors="0.4")
        axes.legend(frameon=False, loc="upper right")
        axes.spines["top"].set_visible(False)
        rates.spines["top"].set_visible(False)
        with storage.atomic_write(storage.join(self.folder, "curves.png")) as file:
            figure.savefig(file, dpi=120, format="png")
