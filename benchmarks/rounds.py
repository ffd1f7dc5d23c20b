"""Noisy-student rounds on real recordings: what pseudo-labels are worth on recordings that nobody has heard.

python benchmarks/rounds.py AUDIO --folds FOLDS.csv --soundscapes DIR --work DIR --json FILE
    [--recipe quickstart] [--rounds 1]

AUDIO has the layout of BirdCLEF 2023 (`train_metadata.csv`, `train_audio/`). For each of its folds: that one is tested,
the next one loses its labels and joins the soundscapes, the others are labelled. What is finished in DIR is not done
again, nor a fold that has its scores in the folder named as FILE, on another machine either.
"""

import argparse
import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pandas as pd

import birdtpu
from birdtpu.evaluation.compare import paired_bootstrap, read_out_of_fold
from birdtpu.recipe import load_recipe
from birdtpu.workflows.noisy_student import noisy_student

AUDIO = (".ogg", ".wav", ".flac", ".mp3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", type=Path)
    parser.add_argument("--folds", required=True)
    parser.add_argument("--soundscapes", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    folds = pd.read_csv(args.folds, dtype=str)
    names = sorted(folds["fold"].unique())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    found: dict[str, Any] = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {}
    if found.get("recipe_hash") != recipe.hash:
        found = {"recipe": recipe.name, "recipe_hash": recipe.hash}
    kept = args.json.with_suffix("")
    tables: dict[int, list[pd.DataFrame]] = {number: [] for number in range(args.rounds + 1)}
    for number, fold in enumerate(names):
        paths = {each: kept / f"round-{each}-fold-{fold}.csv" for each in tables}
        if f"fold {fold}" not in found or not all(path.exists() for path in paths.values()):
            bare = names[(number + 1) % len(names)]
            home = args.work / f"tested-{fold}"
            prepare(recipe, args, folds, fold, bare, home)
            run = home / recipe.hash
            table = noisy_student(recipe, home / "labelled", home / "unlabelled", run, rounds=args.rounds)
            rows = table[table["fold"] == fold]
            kept.mkdir(exist_ok=True)
            for each, path in paths.items():
                shutil.copy(run / f"round-{each}" / "oof.csv", path)
            found[f"fold {fold}"] = {
                "without labels": bare,
                "macro_average_precision": rows["macro_average_precision"].round(4).tolist(),
                "train_seconds": rows["train_seconds"].tolist(),
                "commit": commit.stdout.strip(),
            }
            args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        for each, path in paths.items():
            tables[each].append(read_out_of_fold(str(path)))
    joined = {number: pd.concat(parts, ignore_index=True) for number, parts in tables.items()}
    for number in range(1, args.rounds + 1):
        compared = paired_bootstrap(joined[number], joined[0])
        value, low, high = (round(bound, 4) for bound in compared.difference)
        found[f"round {number} less round 0"] = {
            "student": round(compared.a, 4), "teacher": round(compared.b, 4),
            "difference": value, "low": low, "high": high,
        }  # fmt: skip
    args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(json.dumps(found, indent=1))


def prepare(recipe: Any, args: argparse.Namespace, folds: pd.DataFrame, tested: str, bare: str, home: Path) -> None:
    """`labelled/`, whose fold `tested` is tested and whose others are always trained on, and `unlabelled/`."""
    metadata = pd.read_csv(args.audio / "train_metadata.csv", dtype=str)
    of = folds.set_index("filename")["fold"]
    fold = metadata["filename"].map(of)
    sources = {"labelled": home / "audio" / "labelled", "unlabelled": home / "audio" / "unlabelled"}
    for source in sources.values():
        source.mkdir(parents=True, exist_ok=True)
    for name, of_fold in zip(metadata["filename"], fold, strict=True):
        there = sources["unlabelled"] / name.replace("/", "-")
        if of_fold != bare:
            there = sources["labelled"] / "train_audio" / name
            there.parent.mkdir(parents=True, exist_ok=True)
        if not there.exists():
            shutil.copy(args.audio / "train_audio" / name, there)
    for path in sorted(args.soundscapes.iterdir()):
        if path.suffix in AUDIO and not (sources["unlabelled"] / path.name).exists():
            shutil.copy(path, sources["unlabelled"] / path.name)
    labelled = fold != bare
    metadata[labelled].to_csv(sources["labelled"] / "train_metadata.csv", index=False)
    given = pd.DataFrame({"filename": metadata["filename"], "fold": fold.where(fold == tested, "train")})[labelled]
    given.to_csv(home / "folds.csv", index=False)
    with warnings.catch_warnings():
        # Folds are given: whose groups they keep together is their maker's business.
        warnings.filterwarnings("ignore", message=".*groups .recordist.*")
        birdtpu.prepare(recipe, sources["labelled"], home / "labelled", folds=home / "folds.csv")
        birdtpu.prepare(recipe, sources["unlabelled"], home / "unlabelled", unlabelled=True)


if __name__ == "__main__":
    main()
