"""The command line: arguments to a recipe to one call."""

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from birdtpu import __version__
from birdtpu.errors import Stopped, UserError
from birdtpu.storage import FULL

app = typer.Typer(
    name="birdtpu",
    help="Find which birds sing, and when, in recordings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or the path of a .toml file.")]
# A list, for a line of our own where it is not one.
OneRun = Annotated[list[str], typer.Argument(metavar="RUN", help="A run folder, or kaggle:owner/slug; one.")]
RunFolders = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN",
        help="A run folder, kaggle:owner/slug, or a cross-validation's folder; several runs are an ensemble.",
    ),
]
Combine = Annotated[str, typer.Option(help="What an ensemble averages: probabilities or logits.")]
Weights = Annotated[str | None, typer.Option(metavar="N,N,...", help="A weight a run; default: all alike.")]
InitFrom = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="Begin with this run's weights; its species may be others (kaggle:owner/slug)."),
]
PseudoFile = Annotated[
    str | None, typer.Option("--pseudo", metavar="FILE", help="Train on these pseudo-labels too (pseudo-label's).")
]
Unlabelled = Annotated[
    list[str] | None, typer.Option(metavar="DIR", help="Where the pseudo-labelled recordings are, if they moved.")
]
TeacherFile = Annotated[
    str | None,
    typer.Option("--teacher", metavar="FILE", help="Learn a teacher's embeddings too (model.teacher_features)."),
]
Strategy = Annotated[str, typer.Option(help="mean, fold_matched, file_max or top1: docs/pseudo-labels.md.")]
Sure = Annotated[float, typer.Option(min=0, max=1, help="For top1: the least score of the best species.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change the recipe; may be repeated.")
]
Data = Annotated[
    list[str], typer.Option(metavar="DIR", help="A prepared folder, gs:// or kaggle:owner/slug; may be repeated.")
]
Strict = Annotated[bool, typer.Option(help="Exit with 1 where a file could not be used or is not there.")]
Backend = Annotated[str | None, typer.Option(help="tensorflow or jax; else KERAS_BACKEND, else what is installed.")]
Tpu = Annotated[bool, typer.Option("--tpu", help="Train on a TPU, and on nothing else.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"birdtpu {__version__}")
        raise typer.Exit


@app.command()
def prepare(
    recipe: RecipeName,
    audio: Annotated[list[str], typer.Option(metavar="DIR", help="A folder of recordings; may be repeated.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="The prepared folder.")],
    table: Annotated[
        list[str] | None, typer.Option(metavar="CSV", help="The table of each --audio, in their order.")
    ] = None,
    folds: Annotated[str | None, typer.Option(metavar="CSV", help="Folds to store: filename,fold.")] = None,
    taxonomy: Annotated[str | None, typer.Option(metavar="CSV", help="Codes of scientific names.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that decode; default: one a core.")] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Nothing is known of what they hold.")] = False,
    strict: Strict = False,
    set_: Settings = None,
) -> None:
    """Decode and resample recordings into shards, once for many trainings."""
    from birdtpu.workflows.prepare import TABLES_REPORT, report_lines
    from birdtpu.workflows.prepare import prepare as run

    options: dict[str, Any] = {"table": table, "folds": folds, "taxonomy": taxonomy, "unlabelled": unlabelled}
    report = run(recipe, audio, output, workers=workers, settings=set_ or (), **options)
    minutes = report.seconds / 60
    reused = f", {report.reused} files taken over from before" if report.reused else ""
    typer.echo(f"{report.recordings} recordings, {minutes:.1f} min, {report.records} records in {output}{reused}")
    for line in report_lines(report):
        typer.echo(line)
    missing = [(file, "a table names it, but it is not there") for file in report.tables["missing"]]
    unreadable = [(file, "its name is not UTF-8, rename it") for file in report.tables["not_utf8"]]
    named_in = f"{output}/{TABLES_REPORT}"
    _end_with([(report.failures, f"{output}/failures.csv"), (missing, named_in), (unreadable, named_in)], strict)


@app.command()
def verify(folder: Annotated[str, typer.Argument(metavar="DIR", help="A prepared folder.")]) -> None:
    """Read every byte of a prepared folder and name what is wrong with it."""
    from birdtpu.data.shards import load_manifest
    from birdtpu.data.shards import verify as run

    problems = run(folder)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    shards = load_manifest(folder)["shards"]
    typer.echo(f"{folder}: whole ({len(shards)} shards, {sum(entry['bytes'] for entry in shards)} bytes)")


@app.command()
def train(
    recipe: RecipeName,
    data: Data,
    run: Annotated[str, typer.Option(metavar="DIR", help="The run folder.")],
    fold: Annotated[str | None, typer.Option(help="Hold this fold out; without it, everything is trained on.")] = None,
    init_from: InitFrom = None,
    pseudo: PseudoFile = None,
    unlabelled: Unlabelled = None,
    teacher: TeacherFile = None,
    tpu: Tpu = False,
    backend: Backend = None,
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint, or begin again.")] = True,
    save_minutes: Annotated[float, typer.Option(min=0, help="Between two checkpoints.")] = 10,
    save_steps: Annotated[int, typer.Option(min=0, help="Also after so many steps; 0: by time alone.")] = 0,
    set_: Settings = None,
) -> None:
    """Train a recipe on prepared recordings; an interrupted training goes on where it was."""
    _choose_backend(backend, tpu)
    from birdtpu.workflows.train import train as call

    saving: dict[str, Any] = {"resume": resume, "save_minutes": save_minutes, "save_steps": save_steps}
    start: dict[str, Any] = {"init_from": init_from, "pseudo": pseudo, "unlabelled": unlabelled, "teacher": teacher}
    finished = call(recipe, data, run, fold=fold, settings=set_ or (), tpu=tpu, **start, **saving)
    typer.echo(f"weights, log and curves in {finished.folder}")


@app.command()
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... AUDIO...",
            help="A run folder, kaggle:owner/slug, or a cross-validation's folder; several runs are an ensemble. Then "
            "files and folders of recordings.",
        ),
    ],
    output: Annotated[str, typer.Option(metavar="DIR", help="Folder for a CSV of segments a file.")],
    head: Annotated[str | None, typer.Option(help="clipwise, segmentwise or attention; default: the recipe's.")] = None,
    combine: Combine = "probabilities",
    weights: Weights = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="One for all species.")] = None,
    channel: Annotated[str | None, typer.Option(help="mix, left or right.")] = None,
    submission: Annotated[str | None, typer.Option(metavar="CSV", help="Fill a competition's sample file.")] = None,
    plot: Annotated[bool, typer.Option(help="Also a picture a file.")] = False,
    strict: Strict = False,
    backend: Backend = None,
) -> None:
    """Find what sings in recordings, and when."""
    if channel not in (None, "mix", "left", "right"):
        raise UserError(f"--channel {channel}: one of mix, left, right")
    options: dict[str, Any] = {"head": head, "threshold": threshold, "channel": channel, "submission": submission}
    options |= {"combine": combine, "weights": _numbers(weights)}
    _choose_backend(backend)
    from birdtpu.workflows.members import split_arguments
    from birdtpu.workflows.predict import predict as call

    runs, audio = split_arguments(paths)
    count, failures = call(runs, audio, output, plots=plot, **options)
    typer.echo(f"{count} files scored, results in {output}")
    # Where nothing was scored, nothing went well.
    _end_with([(failures, f"{output}/failures.csv")], strict or not count)


@app.command()
def evaluate(
    run: RunFolders,
    audio: Annotated[str | None, typer.Option(metavar="DIR", help="A labelled folder; else the held-out fold.")] = None,
    table: Annotated[str | None, typer.Option(metavar="CSV", help="The folder's table.")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="DIR", help="Prepared folders, if they moved.")] = None,
    by: Annotated[str, typer.Option(help="recording, or row: 5-s rows against annotations.")] = "recording",
    head: Annotated[str | None, typer.Option(help="clipwise, segmentwise or attention; default: the recipe's.")] = None,
    combine: Combine = "probabilities",
    weights: Weights = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the metrics to this file too.")] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Default: RUN/evaluation, with --audio RUN/evaluation-NAME; of several runs in this folder.",
        ),
    ] = None,
    strict: Strict = False,
    backend: Backend = None,
) -> None:
    """Score a run on its held-out fold, or a run or an ensemble on a labelled folder."""
    options: dict[str, Any] = {"head": head, "combine": combine, "weights": _numbers(weights)}
    _choose_backend(backend)
    from birdtpu.evaluation.report import write_json
    from birdtpu.workflows.evaluate import evaluate as call

    if output is None:
        home = "." if len(run) > 1 or run[0].startswith("kaggle:") else run[0]
        output = f"{home}/evaluation" + (f"-{Path(audio).resolve().name}" if audio else "")
    found, failures = call(run, audio=audio, table=table, data=data, by=by, output=output, **options)
    if json:
        write_json(found.result, json)
    typer.echo(_summary(found.result))
    typer.echo(f"per class, confusion and precision-recall in {output}")
    _end_with([(failures, f"{output}/failures.csv")], strict)


@app.command()
def thresholds(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    target_fpr: Annotated[float, typer.Option(help="Share of recordings with a false call, below 1.")] = 0.01,
    audio: Annotated[str | None, typer.Option(metavar="DIR", help="A labelled folder; else the held-out fold.")] = None,
    table: Annotated[str | None, typer.Option(metavar="CSV", help="The folder's table.")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="DIR", help="Prepared folders, if they moved.")] = None,
    head: Annotated[str | None, typer.Option(help="clipwise, segmentwise or attention; default: the recipe's.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Save each species' own, not their median.")] = False,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Default: RUN/thresholds.")] = None,
    strict: Strict = False,
    backend: Backend = None,
) -> None:
    """Choose thresholds for a false positive rate and save them with the run, for predict to use."""
    _choose_backend(backend)
    from birdtpu.evaluation.thresholds import summary_lines
    from birdtpu.workflows.thresholds import thresholds as call

    output = output or f"{run.rstrip('/')}/thresholds"
    options: dict[str, Any] = {"audio": audio, "table": table, "data": data, "head": head, "per_class": per_class}
    found, failures = call(run, target_fpr=target_fpr, output=output, **options)
    for line in summary_lines(found.result, per_class):
        typer.echo(line)
    typer.echo(f"saved in {run}/thresholds.json; per class, ROC curves and histograms in {output}")
    _end_with([(failures, f"{output}/failures.csv")], strict)


@app.command("cross-validate")
def cross_validate(
    recipe: RecipeName,
    data: Data,
    run: Annotated[str, typer.Option(metavar="DIR", help="Folder for a run a fold; what is done there stays.")],
    init_from: InitFrom = None,
    pseudo: PseudoFile = None,
    unlabelled: Unlabelled = None,
    teacher: TeacherFile = None,
    tpu: Tpu = False,
    backend: Backend = None,
    set_: Settings = None,
) -> None:
    """Train and test every fold into one table."""
    _choose_backend(backend, tpu)
    from birdtpu.workflows.cross_validate import cross_validate as call

    start: dict[str, Any] = {"init_from": init_from, "pseudo": pseudo, "unlabelled": unlabelled, "teacher": teacher}
    table = call(recipe, data, run, settings=set_ or (), tpu=tpu, **start)
    shown = table[[column for column in table.columns if not column.endswith(("_low", "_high"))]]
    typer.echo(shown.to_string(index=False, float_format="%.4f", na_rep=""))


@app.command("pseudo-label")
def pseudo_label(
    run: RunFolders,
    data: Data,
    output: Annotated[
        str, typer.Option(metavar="FILE", help="An .npz; with {fold} in its name one for each run's own student.")
    ],
    strategy: Strategy = "mean",
    power: Annotated[float, typer.Option(help="The targets are raised to it.")] = 1.0,
    threshold: Sure = 0.5,
    head: Annotated[str, typer.Option(help="clipwise, segmentwise or attention.")] = "clipwise",
    weights: Weights = None,
    hop: Annotated[float | None, typer.Option(metavar="SECONDS", help="Between clips; default: a clip.")] = None,
    backend: Backend = None,
) -> None:
    """Let trained runs label unlabelled recordings for others to learn from."""
    options: dict[str, Any] = {"strategy": strategy, "power": power, "threshold": threshold, "head": head}
    options |= {"weights": _numbers(weights), "hop_seconds": hop}
    _choose_backend(backend)
    from birdtpu.workflows.pseudo_label import pseudo_label as call

    for path, labels in call(run, data, output, **options).items():
        typer.echo(f"{path}: {len(labels.clips)} clips of {labels.clips['recording'].nunique()} recordings")


@app.command("noisy-student")
def noisy_student(
    recipe: RecipeName,
    data: Data,
    unlabelled: Annotated[
        list[str], typer.Option(metavar="DIR", help="Prepared recordings to pseudo-label; may be repeated.")
    ],
    run: Annotated[str, typer.Option(metavar="DIR", help="Folder for all rounds; what is done there stays.")],
    rounds: Annotated[int, typer.Option(min=0, help="Of students, after the first teachers.")] = 1,
    fold: Annotated[str | None, typer.Option(help="Only this fold.")] = None,
    student: Annotated[str | None, typer.Option(metavar="RECIPE", help="Of the students; default: RECIPE.")] = None,
    strategy: Strategy = "mean",
    power: Annotated[str, typer.Option(metavar="N,N,...", help="A power a round; the last stays.")] = "1",
    threshold: Sure = 0.5,
    tpu: Tpu = False,
    backend: Backend = None,
    set_: Settings = None,
) -> None:
    """Train on labels, pseudo-label, train on both, and again: each fold learns from its own teacher alone."""
    options: dict[str, Any] = {"rounds": rounds, "fold": fold, "student": student, "strategy": strategy}
    options |= {"powers": _numbers(power, "--power"), "threshold": threshold, "settings": set_ or (), "tpu": tpu}
    _choose_backend(backend, tpu)
    from birdtpu.workflows.noisy_student import noisy_student as call

    table = call(recipe, data, unlabelled, run, **options)
    typer.echo(table.to_string(index=False, float_format="%.4f", na_rep=""))


@app.command()
def publish(
    run: OneRun,
    to: Annotated[str, typer.Option(metavar="OWNER/SLUG", help="A Kaggle data set; made if there is none.")],
    model: Annotated[bool, typer.Option("--model", help="A Kaggle model instead: OWNER/MODEL.")] = False,
    title: Annotated[str | None, typer.Option(help="6 to 50 characters; default: the slug's words.")] = None,
    licence: Annotated[str, typer.Option(help="A wrong one lists those there are.")] = "CC-BY-NC-SA-4.0",
    public: Annotated[bool, typer.Option("--public", help="Show to everybody what is made the first time.")] = False,
) -> None:
    """Publish a run's weights, recipe and scores as a new version on Kaggle."""
    from birdtpu.publish.send import publish as call
    from birdtpu.workflows.members import open_one

    done = call(open_one(run, "publish"), to, model=model, title=title, licence=licence, public=public)
    typer.echo(f"{done.place}: {'there and whole' if done.sent else 'there already, nothing was sent'}")
    typer.echo(f"birdtpu predict {done.place} recordings/ --output timelines/")


@app.command()
def bundle(
    run: OneRun,
    to: Annotated[str, typer.Option(metavar="OWNER/SLUG", help="The data set that it shall be.")],
    competition: Annotated[str, typer.Option(help="Whose recordings are scored: its name as in its address.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="For dataset/ and kernel/.")],
) -> None:
    """Write what a Kaggle notebook without internet needs to predict."""
    from birdtpu.publish.bundle import bundle as call
    from birdtpu.publish.send import check_limits, target
    from birdtpu.workflows.members import open_one

    opened = open_one(run, "bundle")
    place = target(to, False, opened.recipe.name)
    check_limits(place)
    data, kernel = call(opened, output, place, competition=competition)
    typer.echo(f"kaggle datasets create -p {data}\nkaggle kernels push -p {kernel}")


@app.command()
def fetch(
    source: Annotated[str, typer.Argument(metavar="COMPETITION", help="Its name, or kaggle:owner/slug.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="A folder for its files.")],
) -> None:
    """Download a competition's recordings from Kaggle, checked and unpacked."""
    from birdtpu.workflows.fetch import fetch as call

    typer.echo(f"{output}: {call(source, output)} files of {source}")


@app.command()
def submit(
    competition: Annotated[str, typer.Argument(help="Its name as in its address.")],
    file: Annotated[str, typer.Argument(metavar="CSV", help="What predict --submission wrote.")],
    message: Annotated[str, typer.Option(help="Shown beside the submission.")] = "",
) -> None:
    """Send a submission.csv to a Kaggle competition."""
    from birdtpu.workflows.fetch import submit as call

    typer.echo(call(competition, file, message))


@app.command()
def synthesize(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A new folder.")],
    species: Annotated[int, typer.Option(min=2)] = 6,
    recordings: Annotated[int, typer.Option(min=1, help="Of the commonest species.")] = 40,
    soundscapes: Annotated[int, typer.Option(min=0)] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a small world of bird-like recordings to try things on."""
    from birdtpu.data.synthesis import synthesize as call

    made = call(folder, species=species, recordings=recordings, soundscapes=soundscapes, seed=seed)
    typer.echo(f"{folder}: {made}")


@app.command()
def quickstart(
    folder: Annotated[str, typer.Argument(metavar="DIR")] = "birdtpu-quickstart",
    backend: Backend = None,
    set_: Settings = None,
) -> None:
    """The whole job on synthesised recordings, in a few minutes."""
    _choose_backend(backend)
    from birdtpu.workflows.quickstart import quickstart as call

    typer.echo(_summary(call(folder, tuple(set_ or ()))))
    typer.echo(f"look at {folder}/timelines and {folder}/run/evaluation")


@app.command()
def show(recipe: RecipeName, set_: Settings = None) -> None:
    """Print a recipe, resolved."""
    from birdtpu.recipe import load_recipe

    resolved = load_recipe(recipe, set_ or ())
    typer.echo(f"# hash {resolved.hash}\n{resolved.to_toml()}", nl=False)


@app.command("compile")
def compile_(
    recipe: RecipeName,
    topology: Annotated[str, typer.Option(metavar="NAME", help="Such as v5e:1x1, v5e:2x4, v4:2x2x1.")] = "v5e:1x1",
    batch: Annotated[int, typer.Option(min=1, help="Clips a device.")] = 64,
    classes: Annotated[int, typer.Option(min=1, help="Species.")] = 264,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the figures to this file too.")] = None,
    backend: Backend = None,
    set_: Settings = None,
) -> None:
    """Compile a recipe's training step and inference for a TPU that is not here: memory, bytes, speed at most."""
    from birdtpu.training.topology import prepare_environment

    prepare_environment()
    _choose_backend(backend)
    from birdtpu.evaluation.report import write_json
    from birdtpu.recipe import load_recipe
    from birdtpu.training.compile import compile_recipe, report_lines

    found = compile_recipe(load_recipe(recipe, set_ or ()), topology, classes=classes, batch=batch, say=typer.echo)
    if json:
        write_json(found, json)
    for line in report_lines(found):
        typer.echo(line)


@app.command()
def doctor(backend: Backend = None) -> None:
    """Say what this machine has, and what keeps its TPU from training."""
    from birdtpu.workflows.doctor import doctor as call

    text, wrong = call(backend)
    typer.echo(text)
    if wrong:
        raise typer.Exit(1)


def _choose_backend(backend: str | None, tpu: bool = False) -> None:
    """Before Keras is imported: the backend that was asked for, else one that is installed (and drives the TPU)."""
    import importlib.util
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if backend not in (None, "tensorflow", "jax"):
        raise UserError(f"--backend {backend}: tensorflow or jax")
    chosen = backend or os.environ.get("KERAS_BACKEND") or None
    there = [name for name in ("tensorflow", "jax") if importlib.util.find_spec(name)]
    if not there:
        raise UserError("no TensorFlow and no JAX is installed: pip install 'birdtpu[cpu]'")
    if chosen is not None and chosen not in there:
        raise UserError(f"backend {chosen}: not installed; there is {' and '.join(there)}")
    if tpu:
        from birdtpu.training.machine import prepare_for_tpu

        chosen = prepare_for_tpu(chosen)
    os.environ["KERAS_BACKEND"] = chosen or there[0]


def _numbers(text: str | None, option: str = "--weights") -> list[float] | None:
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError:
        one = "a run" if option == "--weights" else "a round"
        raise UserError(f"{option} {text}: numbers with commas between, one {one}, such as 2,1,1") from None


def _summary(result: dict) -> str:
    names = ("macro_average_precision", "macro_roc_auc", "micro_f1", "lwlrap", "padded_cmap", "recording_accuracy")
    lines = [f"{result['n_recordings']} recordings, {result['n_classes_scored']} of {result['n_classes']} species"]
    for name in names:
        value, low, high = (result[name][key] for key in ("value", "low", "high"))
        interval = "" if low is None else f"  (95 % {low:.3f} to {high:.3f})"
        lines.append(f"{name:24} " + ("undefined" if value is None else f"{value:.3f}{interval}"))
    return "\n".join(lines)


def _end_with(lists: list[tuple[list[tuple[str, str]], str]], strict: bool) -> None:
    """A warning line for each list of (file, reason) that is not empty; with `--strict` it is the exit code too."""
    for failures, named_in in lists:
        for file, reason in failures[:1]:
            line = f"{len(failures)} files could not be used ({file}: {reason}); {named_in} names them"
            typer.echo(f"warning: {line}", err=True)
    if strict and any(failures for failures, _ in lists):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; a `UserError` is one line and exit code 2."""
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    # Google's clients say it where a library finds them; which Python Colab or Kaggle has is not its user's choice.
    warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
    try:
        app()
    except UserError as error:
        print(f"birdtpu: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"birdtpu: {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        # A full disk or a folder without permission is the user's to mend.
        place = f"{error.filename}: " if error.filename else ""
        print(f"birdtpu: {place}{error.strerror or error}{_way_out(error)}", file=sys.stderr)
        sys.exit(2)


def _way_out(error: OSError) -> str:
    if error.errno in FULL:
        return "; free space, or give another folder"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "; a file stands where a folder is wanted: give another place"
    if isinstance(error, IsADirectoryError):
        return "; a folder stands where a file is wanted: give a file"
    if isinstance(error, PermissionError):
        return "; give another place, or the right to write there"
    return ""
