"""A student in other runtimes computes what PyTorch computes."""

from types import SimpleNamespace

import numpy
import onnxruntime
import openvino
import pytest
import torch

from common.errors import InputError
from common.export.graphs import decoder_part, denoiser_part, exported_parts
from common.export.onnx_openvino import compare_outputs, dynamic_shapes, onnx_runner, write_onnx, write_openvino
from common.models.loading import load_teacher
from common.pruning.plan import apply_plan
from common.runtime.files import ROOT
from tests.small_students import as_teacher, expected, numbers, plan_of, small_unet, untraced  # noqa: F401

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("kind", "task", "layers"),
    [
        ("ld_pruner", "t2i", 1),
        ("bk_sdm", "t2i", 2),
        ("diff_pruning", "uig", 1),
    ],
)
def test_students_compute_the_same_in_other_runtimes(kind, task, layers, tmp_path):
    teacher = small_unet(task, layers)
    student = apply_plan(teacher, plan_of(kind, teacher))
    part = denoiser_part(as_teacher(student))
    write_onnx(part, tmp_path / "model.onnx", torch.float32)
    write_openvino(tmp_path / "model.onnx", tmp_path / "openvino_model.xml")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = list(numbers(student, 1, 4, 4))
    assert [value.name for value in session.get_inputs()] == names
    assert [value.name for value in session.get_outputs()] == ["out_sample"]
    assert session.get_inputs()[0].shape == ["batch", student.config.in_channels, "height", "width"]
    compiled = openvino.Core().compile_model(tmp_path / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch, height, width in ((1, 4, 4), (3, 4, 4), (2, 8, 6)):
        inputs = numbers(student, batch, height, width)
        wanted = expected(student, inputs)
        assert numpy.abs(wanted - expected(teacher, inputs)).max() > 1e-3  # the edits are in it
        for found in (session.run(None, inputs)[0], compiled(inputs)[0]):
            assert found.shape == wanted.shape and numpy.allclose(found, wanted, atol=1e-5)
    for_all = {**inputs, "timestep": inputs["timestep"][:1]}  # as diffusers' own pipelines over ONNX Runtime call it
    wanted = expected(student, {**inputs, "timestep": inputs["timestep"][:1].repeat(2)})
    assert numpy.allclose(session.run(None, for_all)[0], wanted, atol=1e-5)
    written = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in written and str(ROOT).encode() not in written  # stack traces


def test_codebook_decoder_computes_the_same(tiny_uig_teacher_folder, tmp_path):
    teacher = load_teacher(str(tiny_uig_teacher_folder))
    part = decoder_part(teacher)
    write_onnx(part, tmp_path / "model.onnx", torch.float32)
    codes = teacher.autoencoder.quantize.embedding.weight
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch, height in ((1, 16), (3, 5)):
        latents = codes[torch.randint(0, 16, (batch, height, 16))].permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            wanted = teacher.autoencoder.decode(latents).sample.numpy()
        assert numpy.allclose(session.run(None, {"latent_sample": latents.numpy()})[0], wanted, atol=1e-5)
        drawn = part.draw(batch, False, torch.Generator().manual_seed(0))["latent_sample"].permute(0, 2, 3, 1)
        distances = torch.cdist(drawn.flatten(0, 2), codes).sort().values
        assert (distances[:, 0] < 0.5 * distances[:, 1]).all()  # no rounding decides which code is the nearest


def one_level(**settings):
    """A network with text and little else."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",), "mid_block_type": None}
    shape = {"sample_size": 4, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DConditionModel(cross_attention_dim=16, attention_head_dim=2, **blocks, **shape, **settings).eval()


def test_half_precision_and_weights_beside_the_file(tmp_path, monkeypatch):
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 100)
    unet = one_level().half().float()
    part = denoiser_part(as_teacher(unet))
    write_onnx(part, tmp_path / "before" / "model.onnx", torch.float16)
    assert sorted(path.name for path in (tmp_path / "before").iterdir()) == ["model.onnx", "model.onnx.data"]
    (tmp_path / "before").rename(tmp_path / "after")  # whole_folder moves what it has filled
    inputs = numbers(unet, 3, 4, 4)
    halves = {name: value.astype("float16") if value.dtype == "float32" else value for name, value in inputs.items()}
    found = onnxruntime.InferenceSession(tmp_path / "after" / "model.onnx").run(None, halves)[0]
    assert found.dtype == numpy.float16 and numpy.allclose(found, expected(unet, inputs), atol=0.02)
    assert next(unet.parameters()).dtype == torch.float32  # the network itself stays as it was
    found = compare_outputs(part, onnx_runner(tmp_path / "after" / "model.onnx"), torch.float16, (1, 3), 0)
    assert 0 < found["max_relative"] < 0.01


def test_stable_diffusion_xl_has_all_conditions_and_hidden_states(tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet = one_level(**added, projection_class_embeddings_input_dim=6 * 8 + 12)
    settings = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "projection_dim": 12}
    ends = {"num_hidden_layers": 2, "max_position_embeddings": 7, "eos_token_id": 49, "bos_token_id": 48}
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**settings, **ends)).eval()
    autoencoder = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0))
    teacher = as_teacher(unet, torch.nn.Identity())
    teacher.autoencoder.config = autoencoder.config
    teacher.text_encoder, teacher.text_encoder_2 = encoder, encoder
    parts = {part.name: part for part in exported_parts(teacher)}
    assert list(parts) == ["unet", "vae_decoder", "text_encoder", "text_encoder_2"]
    assert list(parts["unet"].inputs) == ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]
    write_onnx(parts["unet"], tmp_path / "unet.onnx", torch.float32)
    drawn = parts["unet"].draw(3, False, torch.Generator().manual_seed(4))
    added = {name: drawn[name] for name in ("text_embeds", "time_ids")}
    with torch.no_grad():
        wanted = unet(drawn["sample"], drawn["timestep"], drawn["encoder_hidden_states"], added_cond_kwargs=added).sample
    found = onnx_runner(tmp_path / "unet.onnx")(drawn)["out_sample"]
    assert torch.allclose(found, wanted, atol=1e-5)
    write_onnx(parts["text_encoder_2"], tmp_path / "text.onnx", torch.float32)
    ids = torch.randint(0, 50, (3, 7))
    with torch.no_grad():
        wanted = encoder(ids, output_hidden_states=True)
    found = onnx_runner(tmp_path / "text.onnx")({"input_ids": ids})
    assert list(found) == ["text_embeds", "last_hidden_state", "hidden_states.0", "hidden_states.1", "hidden_states.2"]
    assert torch.allclose(found["text_embeds"], wanted.text_embeds, atol=1e-5)
    assert torch.allclose(found["hidden_states.1"], wanted.hidden_states[-2], atol=1e-5)


def test_a_difference_is_seen_whatever_it_is():
    unet = small_unet("uig")
    part = denoiser_part(as_teacher(unet))
    same = compare_outputs(part, part.run, torch.float32, (1, 3), 0)
    assert same["max_absolute"] == same["max_relative"] == 0 and same["inputs"] == [[1, 3, 4, 4], [3, 3, 6, 4]]
    outputs = []

    def shifted(inputs):
        outputs.append(part.run(inputs)["out_sample"])
        return {"out_sample": outputs[-1] + 0.25 * (len(outputs[-1]) == 3)}

    off = compare_outputs(part, shifted, torch.float32, (1, 3), 0)
    assert off["max_absolute"] == pytest.approx(0.25, rel=1e-4)
    assert off["max_relative"] == pytest.approx(0.25 / float(outputs[1].abs().max()), rel=1e-4)
    lost = compare_outputs(part, lambda i: {"out_sample": part.run(i)["out_sample"] * torch.nan}, torch.float32, (1,), 0)
    assert not lost["max_relative"] <= 1e9
    with pytest.raises(InputError, match="out_sample of the exported file is"):
        compare_outputs(part, lambda i: {"out_sample": part.run(i)["out_sample"][:1]}, torch.float32, (3,), 0)
    assert dynamic_shapes(part).keys() == {"sample", "timestep"}


def test_decoder_and_text_encoder_compute_the_same(tiny_teacher, tmp_path):
    parts = {part.name: part for part in exported_parts(tiny_teacher)}
    assert list(parts) == ["unet", "vae_decoder", "text_encoder"]
    for name in ("vae_decoder", "text_encoder"):
        write_onnx(parts[name], tmp_path / name / "model.onnx", torch.float32)
        found = compare_outputs(parts[name], onnx_runner(tmp_path / name / "model.onnx"), torch.float32, (1, 3), 0)
        assert found["max_relative"] < 1e-4
