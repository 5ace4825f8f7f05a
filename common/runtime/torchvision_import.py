"""Lets `import torchvision` work beside a PyTorch without CUDA.

PyPI's torchvision is built for CUDA. Where its compiled operators cannot be loaded its own import fails, and with it that of
transformers and diffusers, which import torchvision when they find it. Here it is only needed for Inception's layers.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

OPERATORS = (  # what the import itself looks up
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
kept: list[Any] = []  # a torch.library.Library that is collected takes its operators with it


def provide_operators(folder: Path) -> None:
    """Loads torchvision's compiled operators from its `folder`, or else declares the two that its import looks up."""
    import torch

    for path in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(path))
            return
        except OSError:
            continue
    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(operator)
    kept.append(library)


class TorchvisionFinder:
    """Finds torchvision as Python does, and provides its operators before its first line is run."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            loader, folder = spec.loader, Path(spec.origin).parent
            execute = loader.exec_module

            def provide_and_execute(module: ModuleType) -> None:
                provide_operators(folder)
                execute(module)

            loader.exec_module = provide_and_execute  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Once, before anything can import torchvision; costs nothing until then."""
    if TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionFinder)
