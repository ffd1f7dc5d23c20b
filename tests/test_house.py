"""The house's own rules: floors, frameworks, names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "birdtpu"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lowest first; a module imports from its own floor and those above it in this list. Twin of CONTRIBUTING.md.
FLOORS = [
    "errors", "storage", "archive", "species", "keys", "recipe", "random", "run", "ops", "data", "layers", "losses",
    "metrics", "models", "inference", "evaluation", "training", "export", "publish", "workflows", "cli",
]  # fmt: skip
EXEMPT = {"__main__", "__init__"}
TENSORFLOW = {
    "storage.py", "data/records.py", "data/shards.py", "data/shelf.py", "data/companions.py", "data/labels.py",
    "data/pipeline.py", "data/tfio.py", "training/strategy.py", "training/tensorflow_step.py", "training/compile.py",
}  # fmt: skip
JAX = {"training/strategy.py", "training/jax_step.py", "training/compile.py", "training/topology.py"}
ANYWHERE_IN = ("inference/runtimes/", "export/")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor(module: str) -> int:
    return FLOORS.index(module.split(".")[1])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_to_floors_already_laid(path: Path) -> None:
    if path.parent == PACKAGE and path.stem in EXEMPT:
        return
    here = FLOORS.index(path.relative_to(PACKAGE).with_suffix("").parts[0])
    higher = [name for name in imports(path) if name.startswith("birdtpu.") and name != "birdtpu.__version__"]
    assert [name for name in higher if floor(name) > here] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_frameworks_stand_only_where_they_may(path: Path) -> None:
    name = name_of(path)
    roots = {module.split(".")[0] for module in imports(path)}
    free = name.startswith(ANYWHERE_IN)
    assert "tensorflow" not in roots or free or name in TENSORFLOW
    assert "jax" not in roots or free or name in JAX
    assert not roots & {"torch", "librosa"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arguments_have_the_words_of_the_field(path: Path) -> None:
    strange = {
        "sr", "fs", "samplerate", "fmin", "fmax", "n_mel", "num_mels", "hop_size", "window_size", "window_length", "lr",
        "label_list", "species_list", "smooth_coef",
    }  # fmt: skip
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert not strange & {argument.arg for argument in every}, f"{node.name} in {path}"


def test_inner_packages_are_empty() -> None:
    inits = [path for path in MODULES if path.name == "__init__.py" and path.parent != PACKAGE]
    assert inits
    assert [path for path in inits if path.read_text("utf-8").strip()] == []


def test_gcs_tools_imports_nothing_of_birdtpu() -> None:
    for path in (ROOT / "gcs_tools").rglob("*.py"):
        assert not any(name.split(".")[0] == "birdtpu" for name in imports(path))


def test_import_and_help_load_no_framework() -> None:
    heavy = {"tensorflow", "jax", "keras", "pandas", "numpy", "matplotlib", "sklearn"}
    code = (
        "import sys, birdtpu\n"
        "from typer.testing import CliRunner\n"
        "from birdtpu.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tree_in_contributing_names_the_same_floors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    tree = text.split("```")[1]
    places = [tree.index(f"\n  {name}") for name in FLOORS if name not in ("export", "publish")]
    assert places == sorted(places)
