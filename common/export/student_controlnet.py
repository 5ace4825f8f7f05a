"""A ControlNet of diffusers that gives a student those of its residuals for which the student has a skip connection.

This file stands alone: it imports torch and diffusers only, and is copied beside the weights, so that diffusers loads them with
AutoModel.from_pretrained(folder, trust_remote_code=True) where this project is not installed.
"""

import inspect
import os
import shutil
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetOutput


class StudentControlNet(ControlNetModel):
    """diffusers' ControlNetModel whose configuration has one more entry, `residuals`: the numbers of those that it returns."""

    def __init__(self, residuals: list[int] | None = None, auto_map: dict[str, str] | None = None, **settings: Any):
        super().__init__(**settings)
        self.register_to_config(residuals=residuals, auto_map={"AutoModel": "student_controlnet.StudentControlNet"})

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        down, middle = super().forward(*args, return_dict=False, **kwargs)
        chosen: list[torch.Tensor] = [down[number] for number in self.config.residuals or range(len(down))]
        return ControlNetOutput(tuple(chosen), middle) if return_dict else (chosen, middle)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As diffusers', with this file beside the weights (for trust_remote_code)."""
        super().save_pretrained(save_directory, *args, **kwargs)
        target = os.path.join(save_directory, "student_controlnet.py")
        if os.path.abspath(__file__) != os.path.abspath(target):
            shutil.copyfile(__file__, target)


# diffusers reads the accepted configuration keys off the signature
_own = [each for each in inspect.signature(StudentControlNet.__init__).parameters.values() if each.kind is not each.VAR_KEYWORD]
_known = [each for each in inspect.signature(ControlNetModel.__init__).parameters.values() if each.name != "self"]
_init: Any = StudentControlNet.__init__
_init.__signature__ = inspect.Signature([*_own, *_known])
