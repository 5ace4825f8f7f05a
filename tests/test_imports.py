"""Names that modules take from each other are there, those taken inside functions included; methods build on common alone."""

import ast
import subprocess
import sys
from importlib import import_module

import pytest
import yaml

from common.runtime.files import ROOT

PUBLIC = {  # what others import; a name that goes from here breaks them
    "common": [
        "load_teacher",
        "load_denoiser",
        "save_student",
        "apply_plan",
        "Method",
        "Plan",
        "Edit",
        "save_sparse",
        "load_sparse",
    ],
    "ld_pruner": ["latent_score", "list_operators"],
    "laptop_diff": ["list_layers", "normalized_feature_loss", "select_layers"],
    "l1_diff": ["importance", "reference_masks", "sparsity"],
    "baselines.bk_sdm": ["build_student"],
}
LAZY = ("common", "experiments")  # whose names are found when they are asked for
PACKAGES = ("common", "experiments", "ld_pruner", "laptop_diff", "l1_diff", "baselines", "benchmarks")


def defined(path):
    """Names that a module has at its top level."""
    names = set()
    for statement in ast.parse(path.read_text()).body:
        for node in [statement, *ast.walk(statement)] if isinstance(statement, ast.If | ast.Try) else [statement]:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return names


def test_every_name_imported_from_the_project_exists():
    paths = [ROOT / "run.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    seen, missing = 0, []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] not in PACKAGES:
                continue
            place = ROOT.joinpath(*node.module.split("."))
            module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            names = defined(module) if module.is_file() else set()
            names |= set(getattr(import_module(node.module), "PUBLIC", ())) if node.module in LAZY else set()
            for alias in node.names:
                seen += 1
                inside = (place / f"{alias.name}.py").is_file() or (place / alias.name).is_dir()
                if not inside and alias.name not in names:
                    missing.append(f"{path.relative_to(ROOT)}: from {node.module} import {alias.name}")
    assert seen > 500 and not missing, missing


def test_methods_build_on_common_and_never_on_each_other():
    targets = [yaml.safe_load(path.read_text())["_target_"] for path in (ROOT / "conf" / "method").glob("*.yaml")]
    methods = {target.rpartition(".")[0] for target in targets}
    packages = {module.partition(".")[0] for module in methods}
    seen, wrong = 0, []
    for package in ("common", *packages):
        for path in (ROOT / package).rglob("*.py"):
            imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
            names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
            for name in names:
                top = name.partition(".")[0]
                seen += top in PACKAGES
                if top in PACKAGES and (top not in ("common", package) or name in methods):
                    wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert len(packages) == 4 and seen > 100 and not wrong, wrong


ROOMS = {  # each builds on what stands before it, and on nothing after it
    "common": (
        *(
            "shown_text",
            "errors",
            "settings",
            "runtime",
            "denoisers",
            "diffusion",
            "audio",
            "cost",
            "pruning",
            "models",
            "scoring",
        ),
        *("training", "data", "metrics", "export"),
    ),
    "experiments": (
        *("shared", "evaluation", "training", "reporting", "sweeps", "dry_run", "exporting", "teacher_training", "job"),
        "datasets",
    ),
}


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_build_on_those_before_them(package):
    rooms, seen, wrong = ROOMS[package], 0, []
    for path in sorted((ROOT / package).rglob("*.py")):
        inside = path.relative_to(ROOT / package).with_suffix("").parts
        if inside[0] not in rooms:  # the package itself, and its commands
            assert len(inside) == 1, f"{path}: the room {inside[0]} has no place in the order"
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
                names = node.module.split(".")[1:] or [alias.name for alias in node.names]
                seen += 1
                if names[0] not in rooms or rooms.index(names[0]) > rooms.index(inside[0]):
                    wrong.append(f"{path.relative_to(ROOT)}: {node.module}")
    assert seen > 100 and not wrong, wrong
    assert all(len(list(room.glob("*.py"))) <= 16 for room in (ROOT / package).iterdir() if room.is_dir())


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_there_and_say_what_they_are(package):
    module = import_module(package)
    assert getattr(module, "__all__", PUBLIC[package]) == PUBLIC[package]
    for name in PUBLIC[package]:
        found = getattr(module, name)
        assert callable(found) and found.__doc__ and found.__module__.partition(".")[0] in PACKAGES, name


def test_a_method_can_be_imported_first():
    """Of a package that imports diffusers before common, where PyPI's torchvision cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", "from baselines.bk_sdm import build_student"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
