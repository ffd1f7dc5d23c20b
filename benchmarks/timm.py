"""Whether our networks compute what timm's of the same name do, with weights of either in the other.

    python benchmarks/timm.py --json timm.json

For an environment that has torch and timm besides birdtpu. Weights are random, with batch statistics, gains and biases
(`tests/models/random_weights.py`), and go through a safetensors file in both directions. An error is the largest
difference between the feature maps as a share of timm's largest value. The small tests take their numbers from here.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

# This file's own folder would stand in for timm; the project's has tests.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import safetensors.numpy
import timm
import torch
from timm.models.efficientvit_msra import checkpoint_filter_fn

from birdtpu.inference.runtimes.keras import compiled
from birdtpu.models.backbones import BACKBONES, build_backbone
from birdtpu.models.networks import timm_weights
from tests.models.random_weights import random_images, random_weights

SMALL, ODD, USUAL = (75, 100), (97, 131), (224, 224)
TOLERANCE = 1e-4
# Its attention depends on the image's size.
WINDOWED = "EfficientViTM3"
ERRORS = ("error_of_timms_weights_here", "error_of_our_weights_there")


def timm_model(name: str, size: tuple[int, int], stem_pool: bool = True) -> torch.nn.Module:
    """timm's network without a classifier, for inference."""
    options = {"img_size": size} if name == WINDOWED else {}
    model = timm.create_model(BACKBONES[name].timm.removeprefix("timm/").split(".")[0], num_classes=0, **options)
    if name == "EfficientViTB0":
        # What its head has before the last layer.
        model.reset_classifier(0, reset_other=True)
    if not stem_pool:
        model.maxpool = torch.nn.Identity()
    return model.eval()


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in model.state_dict().items()}


def randomize(model: torch.nn.Module, seed: int) -> None:
    shapes = {key: value.shape for key, value in weights_of(model).items() if value.dtype.kind == "f"}
    fill(model, weights_of(model) | random_weights(shapes, seed))


def fill(model: torch.nn.Module, weights: dict[str, np.ndarray]) -> None:
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in weights.items()}, strict=True)
    # Drops the biases that EfficientViT-M keeps between calls.
    model.train()
    model.eval()


def features(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return (
            model.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
        )


def error(ours: keras.Model, theirs: torch.nn.Module, size: tuple[int, int], seed: int) -> float:
    images = random_images(2, size, seed)
    truth, got = features(theirs, images), keras.ops.convert_to_numpy(compiled(ours)(images))
    assert got.shape == truth.shape, (got.shape, truth.shape)
    return float(np.abs(got - truth).max() / np.abs(truth).max())


def both_ways(name: str, size: tuple[int, int], folder: Path, **options: bool) -> dict[str, Any]:
    """timm's weights in ours, and ours in timm's."""
    path, other = str(folder / "theirs.safetensors"), str(folder / "ours.safetensors")
    theirs = timm_model(name, size, **options)
    randomize(theirs, seed=1)
    safetensors.numpy.save_file(weights_of(theirs), path)
    ours = build_backbone(name, size, path, **options)
    there = error(ours, theirs, size, seed=2)

    shapes = {key: value.shape for key, value in timm_weights.state(ours).items()}
    safetensors.numpy.save_file(random_weights(shapes, seed=3), other)
    timm_weights.load(ours, other, "", name)
    timm_weights.save(ours, path)
    fill(theirs, safetensors.numpy.load_file(path))
    back = error(ours, theirs, size, seed=4)
    parameters = {
        "parameters": sum(int(np.prod(variable.shape)) for variable in ours.trainable_variables),
        "parameters_of_timm": sum(value.numel() for value in theirs.parameters()),
    }
    shape = {"image": size, **options, "map": ours.output.shape[1:]}
    return {"network": name, **shape, **parameters, **dict(zip(ERRORS, (there, back), strict=True))}


def resized(folder: Path) -> dict[str, float]:
    """Errors at other sizes with weights for the usual one: timm resizes biases of attention, and so do we."""
    usual = timm_model(WINDOWED, USUAL)
    randomize(usual, seed=6)
    path = str(folder / "usual.safetensors")
    safetensors.numpy.save_file(weights_of(usual), path)
    errors = {}
    for size in ((64, 64), ODD, (160, 320)):
        theirs = timm_model(WINDOWED, size)
        theirs.load_state_dict(checkpoint_filter_fn(usual.state_dict(), theirs), strict=True)
        errors["x".join(map(str, size))] = error(build_backbone(WINDOWED, size, path), theirs, size, seed=7)
    return errors


def golden(name: str, **options: bool) -> list[float]:
    """Some numbers of timm's map, for tests/models/test_networks.py."""
    model = timm_model(name, SMALL, **options)
    randomize(model, seed=1)
    return [round(float(value), 5) for value in features(model, random_images(2, SMALL, seed=2))[1, -1, -1, :5]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    rows = []
    cases: list[tuple[str, dict[str, bool]]] = [(name, {}) for name, entry in BACKBONES.items() if entry.timm]
    with tempfile.TemporaryDirectory() as folder:
        for name, options in [*cases, ("ResNet34", {"stem_pool": False})]:
            for size in (USUAL, ODD, SMALL):
                rows.append(both_ways(name, size, Path(folder), **options))
                print(rows[-1], flush=True)
            rows[-1]["numbers"] = golden(name, **options)
        windows = resized(Path(folder))
    print(windows)
    worst = max(*windows.values(), *(row[key] for row in rows for key in ERRORS))
    versions = {each.__name__: each.__version__ for each in (timm, torch, keras)}
    result = {**versions, "backend": keras.backend.backend(), "largest_error": worst, "rows": rows,
              "errors_of_EfficientViTM3_with_weights_for_224x224": windows}  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    same = all(row["parameters"] == row["parameters_of_timm"] for row in rows)
    if worst > TOLERANCE or not same:
        sys.exit(f"largest error {worst:.1e}, {'the same' if same else 'other'} numbers of parameters")


if __name__ == "__main__":
    main()
