"""Processes that outlive a worker's death."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from birdtpu.errors import UserError


@dataclass(frozen=True)
class Crash:
    """A job's end where its process died, or met an error that nobody foresaw."""

    detail: str


@dataclass
class _Worker:
    process: Any
    pipe: Any
    ready: bool = False
    job: tuple[int, Any] | None = None


class Pool:
    """Processes that run a function on jobs. A job that kills its process is reported and the rest goes on.

    Args:
        workers: How many processes, 1 or more.

    Raises: UserError where the processes cannot start.
    """

    def __init__(self, workers: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start() for _ in range(workers)]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.terminate()
            worker.process.join()
            worker.pipe.close()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def run(self, function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (the job's place in `jobs`, its result) in the order in which they end.

        A job is taken from `jobs` when a process is free for it. The result is a `Crash` where the process died twice
        on the job, or where `function` raised anything but a UserError.

        Raises: UserError, as soon as `function` raises one.
        """
        waiting, again = enumerate(jobs), set()
        for i in range(len(self._workers)):
            self._give(i, function, next(waiting, None))
        while pipes := {worker.pipe: i for i, worker in enumerate(self._workers) if worker.job is not None}:
            for pipe in connection.wait(list(pipes)):
                i = pipes[pipe]  # type: ignore[index]
                worker = self._workers[i]
                job = worker.job
                assert job is not None
                answer: list[Any]
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):
                    answer = [self._replace(i)]
                    if job[0] not in again:
                        # The memory may have been short for a moment only.
                        again.add(job[0])
                        self._give(i, function, job)
                        continue
                if not answer:
                    worker.ready = True
                    continue
                self._give(i, function, next(waiting, None))
                if isinstance(answer[0], UserError):
                    raise answer[0]
                yield job[0], answer[0]

    def _give(self, i: int, function: Callable[[Any], Any], job: tuple[int, Any] | None) -> None:
        self._workers[i].job = job
        if job is not None:
            # A process that died while idle is noticed where its answer is awaited.
            with contextlib.suppress(OSError):
                self._workers[i].pipe.send((function, job[1]))

    def _replace(self, i: int) -> Crash:
        """Put a new process in the place of one that died, and say how it died."""
        dead = self._workers[i]
        dead.process.join()
        dead.pipe.close()
        code = dead.process.exitcode
        if not dead.ready:
            raise UserError(
                f"the worker processes do not start (exit code {code}): "
                "a script that uses them keeps its calls under `if __name__ == '__main__':`"
            )
        self._workers[i] = self._start()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Crash(f"the decoding process died ({how})")


def _serve(pipe: Any) -> None:
    """A worker's life: say that it is ready (an empty answer), then answer jobs until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the other end is gone
        pipe.send([])
        # Decoders talk to stderr of damage that the result names; a thousand files would bury the progress bar.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        while True:
            function, job = pipe.recv()
            try:
                answer = function(job)
            except UserError as error:
                answer = UserError(str(error))
            except Exception as error:
                answer = Crash(f"{type(error).__name__}: {error}".splitlines()[0])
            pipe.send([answer])


def _end_with_parent() -> None:
    """A worker in the middle of a long file must not write on when its run was killed."""
    connection.wait([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]
    os._exit(1)
