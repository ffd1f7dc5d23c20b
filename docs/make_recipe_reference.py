"""Write docs/recipes.md from the recipe models: `python docs/make_recipe_reference.py`."""

import json
from pathlib import Path
from typing import Any

from birdtpu.recipe import Recipe, load_recipe, recipe_names

HEAD = """# Recipe reference

Made by `python docs/make_recipe_reference.py` from `birdtpu/keys.py`; a test keeps it current.

A recipe is a TOML file of a few lines over another one:

```toml
extends = "birdcall2020"

[train]
epochs = 50
```

`birdtpu show RECIPE` prints one resolved, `--set table.key=value` changes a key for one command (the value is TOML; a
bare word is text), and an unknown key is an error that suggests the near one. The resolved recipe and a hash of its
content stand in every run folder.
"""

TAIL = """## Backbones

Of `keras.applications`, with our BatchNorm and dropout: ResNet50, ResNet101, ResNet50V2, InceptionV3, EfficientNetB0 to
B3, EfficientNetV2B0, EfficientNetV2S, MobileNetV3Small, MobileNetV3Large and ConvNeXtTiny; `weights = "imagenet"` has
Keras fetch theirs. `small_cnn` is for tests and two cores.

Of timm, written anew, without its classifier:

| backbone | timm's | parameters | map of 224 x 224 pixels | error |
|---|---|---|---|---|
| `ResNet34` | `resnet34.a1_in1k` | 21,284,672 | 7 x 7 x 512 (`stem_pool = false`: 14 x 14) | 1.2e-6 |
| `MNASNet100` | `mnasnet_100.rmsp_in1k` | 3,102,312 | 7 x 7 x 1280 | 1.6e-6 |
| `EfficientViTB0` | `efficientvit_b0.r224_in1k` | 682,608 | 7 x 7 x 128 | 7e-7 |
| `EfficientViTM3` | `efficientvit_m3.r224_in1k` | 6,579,082 | 4 x 4 x 320 | 1.7e-6 |
| `ECANFNetL0` | `eca_nfnet_l0.ra2_in1k` | 21,838,924 | 7 x 7 x 2304 | 3.5e-6 |

The error is the largest difference from timm's map as a share of its largest value, in float32, with random weights and
batch statistics that went through a file in either direction, at three sizes (`python benchmarks/timm.py --json FILE`,
[JSON](results/timm.json)). timm's own weights have not been tried. For them, save `model.safetensors` from
`https://huggingface.co/timm/NAME` and set `model.weights` to its path, or to a `.npz` of the same names; nothing is
unpickled, and a run needs the file no more. Sides need not be equal or multiples of 32; EfficientViTM3 resizes its
attention's biases to the image's size, as timm does.
"""


def reference() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    shipped = [name for name in recipe_names() if name != "base"]
    recipes = {name: load_recipe(name).model_dump() for name in shipped}
    parts.append(
        "Shipped: " + ", ".join(f"`{name}`" for name in shipped) + ". Each is told where it has not the default.\n"
    )
    for table, field in Recipe.model_fields.items():
        if table == "name":
            continue
        section: Any = field.annotation
        parts.append(f"## {table}\n\n{section.__doc__.splitlines()[0]}\n")
        parts.append("| key | default | meaning | otherwise |\n|---|---|---|---|")
        default = section().model_dump()
        for key, info in section.model_fields.items():
            own: dict[str, list[str]] = {}
            for name in shipped:
                if recipes[name][table][key] != default[key]:
                    own.setdefault(_text(recipes[name][table][key]), []).append(name)
            otherwise = "; ".join(f"`{value}` in {', '.join(names)}" for value, names in own.items())
            meaning = (info.description or "").replace("|", "\\|")
            parts.append(f"| `{key}` | `{_text(default[key])}` | {meaning} | {otherwise} |")
        parts.append("")
    parts.append(TAIL)
    return "\n".join(parts)


def _text(value: object) -> str:
    return json.dumps(value)


if __name__ == "__main__":
    Path(__file__).with_name("recipes.md").write_text(reference(), "utf-8")
