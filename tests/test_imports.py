"""Names that modules take from each other are there, those taken inside functions included."""

import ast

import common
from common.files import ROOT

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
            names |= set(common.PUBLIC) if node.module == "common" else set()  # found when they are asked for
            for alias in node.names:
                seen += 1
                inside = (place / f"{alias.name}.py").is_file() or (place / alias.name).is_dir()
                if not inside and alias.name not in names:
                    missing.append(f"{path.relative_to(ROOT)}: from {node.module} import {alias.name}")
    assert seen > 500 and not missing, missing
