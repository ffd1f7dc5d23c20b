"""Recipes cross-validated on real recordings, resumable: macro average precision by recording, and who is better.

python benchmarks/cross_validate.py AUDIO --folds FOLDS.csv --work DIR --json FILE
    [--recipe quickstart ...] [--seeds 0 ...]

AUDIO is a folder in any layout that `birdtpu prepare` reads. What is finished in DIR is not done again. FILE gets an
entry a recipe and seed, and the folder named as FILE its out-of-fold scores: what stands there is not done again, on
another machine either. Every recipe is compared with quickstart over the seeds that both have, on the same recordings,
by a paired bootstrap.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import birdtpu
from birdtpu.evaluation.compare import paired_bootstrap, read_out_of_fold
from birdtpu.recipe import Recipe, load_recipe

PEER = "quickstart"
MEANS = ("macro_roc_auc", "micro_f1", "lwlrap", "recording_accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio")
    parser.add_argument("--folds", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--recipe", nargs="+", default=[PEER])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    found: dict[str, Any] = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {}
    for seed in args.seeds:
        for name in args.recipe:
            recipe = load_recipe(name, [f"train.seed={seed}"])
            entry = found.get(name, {}).get(str(seed), {})
            if entry.get("recipe_hash") != recipe.hash or not scores_path(args.json, name, seed).exists():
                found.setdefault(name, {})[str(seed)] = cross_validated(recipe, args)
                save(args.json, found)
    for name in args.recipe:
        if name != PEER and PEER in found:
            found[name]["beside_quickstart"] = compared(name, found, args.json)
            save(args.json, found)
    print(json.dumps({name: found[name] for name in args.recipe}, indent=1))


def cross_validated(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """One recipe and seed, trained and tested on every fold."""
    audio = recipe.audio
    prepared = str(Path(args.work, f"prepared-{audio.sample_rate}-{audio.record_seconds:g}"))
    with warnings.catch_warnings():
        # Folds are given: whose groups they keep together is their maker's business.
        warnings.filterwarnings("ignore", message=".*groups .recordist.*")
        birdtpu.prepare(recipe, args.audio, prepared, folds=args.folds)
    home = Path(args.work, recipe.hash)
    table = birdtpu.cross_validate(recipe, prepared, str(home))
    kept = scores_path(args.json, recipe.name, recipe.train.seed)
    kept.parent.mkdir(exist_ok=True)
    shutil.copy(home / "oof.csv", kept)
    print(table.to_string(index=False))
    folds = table[~table["fold"].isin(["mean", "pooled"])].set_index("fold")
    mean, pooled = (table.set_index("fold").loc[row] for row in ("mean", "pooled"))
    name = "macro_average_precision"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "recipe_hash": recipe.hash,
        "commit": commit.stdout.strip(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        name: {
            "folds": folds[name].round(4).to_dict(),
            "mean": round(mean[name], 4),
            "low": round(mean[f"{name}_low"], 4),
            "high": round(mean[f"{name}_high"], 4),
            "pooled": round(pooled[name], 4),
        },
        "mean": {metric: round(mean[metric], 4) for metric in MEANS},
        "train_seconds": folds["train_seconds"].to_dict(),
    }


def compared(name: str, found: dict[str, Any], path: Path) -> dict[str, Any]:
    """A recipe's difference to quickstart over the seeds that both have."""
    seeds = sorted(set(found[name]) & set(found[PEER]) - {"beside_quickstart"})
    a, b = ([read_out_of_fold(str(scores_path(path, recipe, seed))) for seed in seeds] for recipe in (name, PEER))
    comparison = paired_bootstrap(a, b)
    interval = comparison.difference
    return {
        "seeds": [int(seed) for seed in seeds],
        "this": round(comparison.a, 4),
        "quickstart": round(comparison.b, 4),
        "difference": round(interval.value, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
    }


def scores_path(path: Path, recipe: str, seed: int | str) -> Path:
    """Where the out-of-fold scores of a recipe and seed stand."""
    return path.with_suffix("") / f"{recipe}-{seed}.csv"


def save(path: Path, found: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
