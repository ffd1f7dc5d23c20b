"""`python -m gcs_tools push|pull|ls|verify|rm`."""

import os
import sys
import warnings
from typing import Annotated

import typer

from gcs_tools import transfer
from gcs_tools.bucket import TransferError, plain

app = typer.Typer(
    help="Move and verify files between here and Google Cloud Storage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Folder = Annotated[str, typer.Argument(metavar="DIR")]
Url = Annotated[str, typer.Argument(metavar="gs://BUCKET/PREFIX")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Files at a time.")]
Deadline = Annotated[float, typer.Option(min=1, help="Seconds for which a request is tried again.")]


@app.command()
def push(
    folder: Folder, url: Url, workers: Workers = transfer.WORKERS, deadline: Deadline = transfer.DEADLINE_SECONDS
) -> None:
    """Send a folder: what is missing there or differs, then the manifest."""
    report = transfer.push(folder, url, workers=workers, deadline_seconds=deadline)
    typer.echo(f"{report.files} files, {report.moved} sent ({_size(report.moved_bytes)}); {url} is whole")
    if report.others:
        typer.echo(f"{report.others} other objects lie below {url} and are left alone")


@app.command()
def pull(
    url: Url, folder: Folder, workers: Workers = transfer.WORKERS, deadline: Deadline = transfer.DEADLINE_SECONDS
) -> None:
    """Fetch what a prefix's manifest lists: what is missing here or differs."""
    report = transfer.pull(url, folder, workers=workers, deadline_seconds=deadline)
    typer.echo(f"{report.files} files, {report.moved} fetched ({_size(report.moved_bytes)}); {folder} is whole")


@app.command()
def ls(url: Url, deadline: Deadline = transfer.DEADLINE_SECONDS) -> None:
    """List a prefix."""
    found = transfer.ls(url, deadline_seconds=deadline)
    for name, entry in found.items():
        typer.echo(f"{entry.size:>14,}  {entry.crc32c}  {plain(name)}")
    typer.echo(f"{len(found)} objects, {_size(sum(entry.size for entry in found.values()))}")


@app.command()
def verify(url: Url, deadline: Deadline = transfer.DEADLINE_SECONDS) -> None:
    """Compare a prefix with its manifest; exit code 1 where something is wrong."""
    problems = transfer.verify(url, deadline_seconds=deadline)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{url} is whole")


@app.command()
def rm(
    url: Url,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workers: Workers = transfer.WORKERS,
    deadline: Deadline = transfer.DEADLINE_SECONDS,
) -> None:
    """Remove what a prefix's manifest lists, and nothing else."""
    if not yes:
        typer.confirm(f"remove all that the manifest of {url} lists?", abort=True)
    report = transfer.rm(url, workers=workers, deadline_seconds=deadline)
    typer.echo(f"{report.moved} objects removed ({_size(report.moved_bytes)}), {report.others} others left alone")


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def main() -> None:
    """Run the command line; a `TransferError` is one line and exit code 2, an interruption is code 130 and at once."""
    # Which Python a machine of Colab or Kaggle has is not its user's choice.
    warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
    try:
        app()
    except TransferError as error:
        print(f"gcs_tools: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"gcs_tools: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _leave()
    except SystemExit as end:
        if end.code == 130:
            _leave()
        raise


def _leave() -> None:
    """End without waiting for the threads whose files are under way."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)


if __name__ == "__main__":
    main()
