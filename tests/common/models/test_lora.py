"""A LoRA fused into a teacher, in the forms in which people have them, and an autoencoder given apart."""

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from baselines.bk_sdm_table import plan_for
from common.errors import InputError
from common.models.loading import load_teacher
from common.models.lora import for_student, fuse_lora, module_of, read_lora, with_own_scale
from common.pruning.plan import Edit, Plan, apply_plan
from tests.small_teachers import change, stable_diffusion

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def lora_of(folder, target, rank=2):
    """A file as diffusers' training scripts save it, and what it adds to each weight of the U-Net."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    pipeline.unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    )
    state = {
        name: torch.randn(value.shape, generator=generator) for name, value in get_peft_model_state_dict(pipeline.unet).items()
    }
    kind = type(pipeline)
    kind.save_lora_weights(target.parent, unet_lora_layers=state, weight_name=target.name)
    names = {name.removesuffix(".lora_A.weight") for name in state if name.endswith("lora_A.weight")}
    return {name: state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] for name in names}


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_what_is_added_is_the_product_of_its_matrices(tiny_teacher_folder, tmp_path, scale):
    added = lora_of(tiny_teacher_folder, tmp_path / "style.safetensors")
    plain = load_teacher(str(tiny_teacher_folder))
    fused = load_teacher(str(tiny_teacher_folder), lora=str(tmp_path / "style.safetensors"), lora_scale=scale)
    weights, theirs = plain.denoiser.state_dict(), fused.denoiser.state_dict()
    assert theirs.keys() == weights.keys() and len(added) > 4
    for name, value in weights.items():
        change_of = added.get(name.removesuffix(".weight"), torch.tensor(0.0))
        torch.testing.assert_close(theirs[name], value + scale * change_of, rtol=1e-4, atol=1e-5)
    assert fused.fingerprint() != plain.fingerprint()


def test_kohyas_form(tiny_teacher_folder, tmp_path):
    """Names with underscores, and an alpha of its own: alpha / rank times the product."""
    down, up = torch.randn(2, 8), torch.randn(8, 2)
    stem = f"lora_unet_{SITE.replace('.', '_')}"
    save_file(
        {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)},
        tmp_path / "kohya.safetensors",
    )
    plain, fused = load_teacher(str(tiny_teacher_folder)), load_teacher(str(tiny_teacher_folder), lora=str(tmp_path))
    before, after = (each.denoiser.get_submodule(SITE).weight for each in (plain, fused))
    torch.testing.assert_close(after, before + 0.5 * up @ down, rtol=1e-4, atol=1e-5)


def test_of_another_model(tiny_teacher_folder, tmp_path):
    lora_of(tiny_teacher_folder, tmp_path / "a.safetensors")
    weights = load_file(tmp_path / "a.safetensors")
    wide = {name: torch.cat([value] * 2, 1) if "lora_A" in name else value for name, value in weights.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(
        InputError, match=r"wide.*\d+ of its \d+ weights do not fit .*to_q\.lora_A.*It is of another model"
    ) as told:
        load_teacher(str(tiny_teacher_folder), lora=str(tmp_path / "wide.safetensors"))
    assert str(told.value).count("lora_A.weight (") <= 10
    save_file(
        {name.replace("down_blocks.0", "down_blocks.7"): value for name, value in weights.items()}, tmp_path / "b.safetensors"
    )
    with pytest.raises(InputError, match="no such module"):
        load_teacher(str(tiny_teacher_folder), lora=str(tmp_path / "b.safetensors"))
    save_file({"x": torch.zeros(2)}, tmp_path / "no.safetensors")
    with pytest.raises(InputError, match="no.safetensors (holds no LoRA|cannot be read as a LoRA)"):
        load_teacher(str(tiny_teacher_folder), lora=str(tmp_path / "no.safetensors"))
    with pytest.raises(InputError, match="holds 4 files of weights"):
        load_teacher(str(tiny_teacher_folder), lora=str(tmp_path))
    with pytest.raises(InputError, match="cannot be read"):
        load_teacher(str(tiny_teacher_folder), lora=str(tmp_path / "none.safetensors"))


def test_models_that_take_none(tiny_uig_teacher_folder, tmp_path):
    with pytest.raises(InputError, match="takes none"):
        load_teacher(str(tiny_uig_teacher_folder), lora=str(tmp_path / "a.safetensors"))


def test_an_autoencoder_apart(tiny_teacher_folder, tmp_path):
    other = stable_diffusion(tmp_path / "other")
    weights = load_file(other / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({name: 1.1 * value for name, value in weights.items()}, other / "vae" / "diffusion_pytorch_model.safetensors")
    own, changed = load_teacher(str(tiny_teacher_folder)), load_teacher(str(tiny_teacher_folder), vae=str(other))
    wanted = load_teacher(str(other)).autoencoder.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in changed.autoencoder.state_dict().items())
    assert torch.equal(changed.denoiser.conv_in.weight, own.denoiser.conv_in.weight)
    assert changed.fingerprint() != own.fingerprint()
    alone = load_teacher(str(tiny_teacher_folder), vae=str(other / "vae"))
    assert alone.fingerprint() == changed.fingerprint()


def test_an_autoencoder_of_other_latents(tiny_teacher_folder, tiny_uig_teacher_folder, tmp_path):
    other = stable_diffusion(tmp_path / "other")
    change(other, "vae/config.json", scaling_factor=0.5)
    with pytest.raises(InputError, match=r"teacher\.vae=.* has other latents: scaling_factor=0\.5"):
        load_teacher(str(tiny_teacher_folder), vae=str(other))
    with pytest.raises(InputError, match=r"teacher\.vae=.* is a \w+, and the teacher's is a AutoencoderKL"):
        load_teacher(str(tiny_teacher_folder), vae=str(tiny_uig_teacher_folder))
    with pytest.raises(InputError, match="is no folder"):
        load_teacher(str(tiny_teacher_folder), vae=str(tmp_path / "none"))


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
def test_on_a_student_of_bk_sdm_each_layer_gets_its_own(four_level_teacher_folder, tmp_path, variant, alpha):
    """Fused into the teacher and pruned, or pruned and fused: the same student."""
    lora_of(four_level_teacher_folder, tmp_path / "a.safetensors")
    weights, _, _ = read_lora("StableDiffusionPipeline", str(tmp_path / "a.safetensors"), None)
    modules = {module_of(key) for key in weights}
    alphas = {} if alpha is None else {f"{module}.alpha": alpha for module in modules}
    scaled = with_own_scale(weights, alphas, {})
    save_file(scaled, tmp_path / "scaled.safetensors")
    teacher = load_teacher(str(four_level_teacher_folder))
    plan = plan_for(teacher.denoiser, variant)
    networks = {"unet": apply_plan(teacher.denoiser, plan), "text_encoder": teacher.text_encoder}
    kept, left_out = for_student(scaled, plan, networks)
    assert len(kept) + len(left_out) == len(weights) and all("is gone (drop)" in reason for reason in left_out.values())
    save_file(kept, tmp_path / "student.safetensors")
    parts = {"vae": teacher.autoencoder, "tokenizer": teacher.tokenizer, "scheduler": teacher.scheduler, **networks}
    fuse_lora("StableDiffusionPipeline", parts, str(tmp_path / "student.safetensors"), 1.0)
    fused = load_teacher(str(four_level_teacher_folder), lora=str(tmp_path / "scaled.safetensors"))
    found, wanted = networks["unet"].state_dict(), apply_plan(fused.denoiser, plan).state_dict()
    plain = apply_plan(teacher.denoiser, plan).state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)
    assert sum(not torch.equal(found[name], value) for name, value in plain.items()) > 5


def test_on_a_student_without_layers(four_level_teacher_folder, tmp_path):
    lora_of(four_level_teacher_folder, tmp_path / "a.safetensors")
    weights, _, _ = read_lora("StableDiffusionPipeline", str(tmp_path / "a.safetensors"), None)
    teacher = load_teacher(str(four_level_teacher_folder))
    plan = Plan("test", (Edit("mid_block.attentions.0", "identity"), Edit("up_blocks.1.resnets.0", "shortcut")))
    kept, left_out = for_student(weights, plan, {"unet": apply_plan(teacher.denoiser, plan)})
    assert set(left_out.values()) == {"mid_block.attentions.0 is gone (identity)"}
    assert all("mid_block.attentions.0" in key for key in left_out) and len(kept) == len(weights) - len(left_out)
