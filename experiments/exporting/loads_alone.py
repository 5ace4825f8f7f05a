"""Loads an exported folder with diffusers alone and draws from given noise; experiments/export.py runs it as a process apart.

python -I loads_alone.py <folder> <given.safetensors> <drawn.safetensors> <steps> <guidance>

The project is not there (its packages cannot be imported), and its sampler is not used. Prints one line of JSON: the
class of the pipeline, or why diffusers could not build it and its parts had to be loaded one by one.
"""

import inspect
import json
import sys
from pathlib import Path

for name in ("common", "experiments", "ld_pruner", "laptop_diff", "l1_diff", "baselines"):
    sys.modules[name] = None
try:
    import torchvision  # noqa: F401
except Exception:  # built for another PyTorch, it would take transformers and diffusers with it; nothing here needs it
    sys.modules["torchvision"] = None

import diffusers  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def load_part(folder, name):
    """A network by its own folder; code is trusted where its config.json names some, and refused by diffusers elsewhere."""
    own = "auto_map" in json.loads((folder / name / "config.json").read_text())
    trust = {"trust_remote_code": True} if own else {}
    return diffusers.AutoModel.from_pretrained(str(folder / name), torch_dtype=torch.float32, **trust)


def load(folder):
    """Denoiser, autoencoder, scheduler, the pipeline (None where it could not be built), and what is told of it."""
    index = json.loads((folder / "model_index.json").read_text())
    autoencoder = "vae" if "vae" in index else "vqvae"
    part = "transformer" if "transformer" in index else "unet"
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder, trust_remote_code=True, torch_dtype=torch.float32, local_files_only=True
        )
        told = {"pipeline": type(pipeline).__name__, "reason": None}
        return getattr(pipeline, part), getattr(pipeline, autoencoder), pipeline.scheduler, pipeline, told
    except Exception as error:  # a pipeline class that this version of diffusers, or what is installed, does not have
        told = {"pipeline": None, "reason": " ".join(str(error).split())[:300] or type(error).__name__}
    denoiser, decoder = (load_part(folder, name) for name in (part, autoencoder))
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler")
    return denoiser, decoder, scheduler, None, told


@torch.no_grad()
def draw(denoiser, autoencoder, scheduler, given, steps, guidance):
    """Final latents and images by DDIM, or a flow's own scheduler, written out once more."""
    known = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    flow = scheduler.config.get("use_flow_sigmas") or type(scheduler).__name__.startswith("FlowMatch")
    scheduler = (type(scheduler) if flow else diffusers.DDIMScheduler).from_config(known)
    scheduler.set_timesteps(steps)
    latents = given["noise"] * getattr(scheduler, "init_noise_sigma", 1.0)

    def predict(timestep, kind):
        values = {key.partition(".")[2]: value for key, value in given.items() if key.startswith(f"{kind}.")}
        added = {key: values.pop(key) for key in ("text_embeds", "time_ids") if key in values}
        if added:
            values["added_cond_kwargs"] = added
        inputs = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
        if not hasattr(denoiser, "transformer_blocks"):
            return denoiser(inputs, timestep, **values).sample
        if "added_cond_kwargs" in inspect.signature(denoiser.forward).parameters:
            values["added_cond_kwargs"] = {key: values.pop(key, None) for key in ("resolution", "aspect_ratio")}
        timesteps = timestep.expand(len(inputs)) * denoiser.config.get("timestep_scale", 1.0)
        output = denoiser(hidden_states=inputs, timestep=timesteps, **values).sample
        return output[:, : inputs.shape[1]]  # without a variance that it may have learned

    for timestep in scheduler.timesteps:
        output = predict(timestep, "conditions")
        if guidance > 1 and "conditions.timestep_cond" not in given:
            empty = predict(timestep, "empty")
            output = empty + guidance * (output - empty)
        latents = scheduler.step(output, timestep, latents).prev_sample
    return decoded(autoencoder, latents)


def draw_packed(pipeline, given, steps, guidance):
    """Final latents and images by the pipeline itself of FLUX or Qwen-Image, whose networks take latents as tokens."""
    noise, factor = given["noise"], pipeline.vae_scale_factor
    size = dict(zip(("height", "width"), (factor * side for side in noise.shape[2:]), strict=True))
    names = {
        "encoder_hidden_states": "prompt_embeds",
        "encoder_hidden_states_mask": "prompt_embeds_mask",
        "pooled_projections": "pooled_prompt_embeds",
    }
    names = {theirs: ours for theirs, ours in names.items() if f"conditions.{theirs}" in given}
    text = {ours: given[f"conditions.{theirs}"] for theirs, ours in names.items()}
    second = "true_cfg_scale" if "true_cfg_scale" in inspect.signature(pipeline.__call__).parameters else "guidance_scale"
    told = pipeline.transformer.config.guidance_embeds
    text["guidance_scale" if told else second] = guidance
    if guidance > 1 and not told:
        text |= {f"negative_{ours}": given[f"empty.{theirs}"] for theirs, ours in names.items()}
    patched = hasattr(pipeline, "_patchify_latents")  # FLUX.2's takes patches as channels, and gives what is decoded
    tokens = pipeline._patchify_latents(noise) if patched else pipeline._pack_latents(noise, *noise.shape)
    drawn = pipeline(latents=tokens, num_inference_steps=steps, output_type="latent", **size, **text).images
    if patched:
        norm = pipeline.vae.bn
        mean, variance = (each.view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var))
        scaled = (pipeline._patchify_latents(drawn) - mean) / (variance + pipeline.vae.config.batch_norm_eps).sqrt()
        return {"latents": pipeline._unpatchify_latents(scaled), "images": pipeline.vae.decode(drawn).sample}
    return decoded(pipeline.vae, pipeline._unpack_latents(drawn, *size.values(), factor))


def decoded(autoencoder, latents):
    """The latents, and the images that they become."""
    if latents.dim() == 5:  # of a video
        mean, spread = (latents.new_tensor(autoencoder.config[n]).view(1, -1, 1, 1, 1) for n in ("latents_mean", "latents_std"))
        return {"latents": latents[:, :, 0], "images": autoencoder.decode(latents * spread + mean).sample[:, :, 0]}
    config, shift, spread = autoencoder.config, autoencoder.config.get("shift_factor") or 0.0, 1.0
    if config.get("latents_mean") is not None:
        shift, spread = (latents.new_tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
    return {"latents": latents, "images": autoencoder.decode(latents * spread / config.scaling_factor + shift).sample}


def main():
    folder, given, drawn, steps, guidance = sys.argv[1:]
    *parts, pipeline, told = load(Path(folder))
    if pipeline is None and "img_ids" in inspect.signature(parts[0].forward).parameters:
        raise SystemExit(f"diffusers cannot build the pipeline, without which such a network does not draw: {told['reason']}")
    arguments = load_file(given), int(steps), float(guidance)
    found = draw_packed(pipeline, *arguments) if hasattr(pipeline, "_pack_latents") else draw(*parts, *arguments)
    save_file({name: value.contiguous() for name, value in found.items()}, drawn)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
