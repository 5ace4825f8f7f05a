"""A LoRA of a diffusion transformer that is a teacher: added to its weights, and carried over to a student."""

import pytest
import torch

from common.models.loading import load_teacher
from common.pruning.layers import list_layers
from common.pruning.plan import Plan, apply_plan
from experiments.adapter import adapt_lora


def check_lora(folder, pipeline, modules, site, block, tmp_path):
    """A LoRA of `modules` of the teacher in `folder`, looked at at `site`; the student lacks the layer of the number `block`.

    pipeline: the class of diffusers that saves it.
    """
    pytest.importorskip("peft")
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(3)
    plain, tuned = load_teacher(str(folder)), load_teacher(str(folder)).denoiser
    tuned.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=modules, init_lora_weights=False))
    state = get_peft_model_state_dict(tuned)
    pipeline.save_lora_weights(tmp_path, transformer_lora_layers=state, weight_name="style.safetensors")
    fused = load_teacher(str(folder), lora=str(tmp_path / "style.safetensors"))
    added = state[f"{site}.lora_B.weight"] @ state[f"{site}.lora_A.weight"]
    change = fused.denoiser.get_submodule(site).weight - plain.denoiser.get_submodule(site).weight
    torch.testing.assert_close(change, added, rtol=1e-4, atol=1e-5)

    plan = Plan("some", (list_layers(plain.denoiser)[block].edit,))
    student = plain.with_parts(denoiser=apply_plan(plain.denoiser, plan))
    adapt_lora(student, pipeline.__name__, plan, tmp_path / "style.safetensors", tmp_path / "own.safetensors")
    expected = apply_plan(fused.denoiser, plan)
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(student.denoiser.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
