"""A pruned transformer as the stock class with fewer blocks, beside the map of its blocks: written, read back, and compared."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.diffusion.sampling import predict
from common.errors import InputError
from common.export.compact import compact
from common.export.onnx_openvino import DTYPES
from common.models.latent_diffusion import LatentDiffusion
from common.runtime.files import write_json
from experiments.exporting.exported_formats import given_noise, relative

FOLDER = "stock"
BLOCKS = "blocks.json"  # beside the weights: the teacher's path of each block by its own


@torch.no_grad()
def export_stock_class(teacher: LatentDiffusion, folder: Path, dtype: str, tolerance: float, seed: int) -> dict[str, Any]:
    """Writes FOLDER below the pipeline folder, and tells how far what diffusers reads of it is from the student.

    InputError for a student of which more than whole blocks is gone, and where outputs differ by more than the tolerance.
    """
    network, numbers = compact(teacher.denoiser)
    stock: Any = network
    nn.Module.to(stock, DTYPES[dtype]).save_pretrained(folder / FOLDER)
    write_json(folder / FOLDER / BLOCKS, numbers)
    read = type(stock).from_pretrained(folder / FOLDER, torch_dtype=torch.float32)
    noise, conditions, _ = given_noise(teacher, 2, seed)
    timesteps = torch.full((2,), teacher.scheduler.config.num_train_timesteps // 2)
    found = relative(predict(read, noise, timesteps, conditions), predict(teacher.denoiser, noise, timesteps, conditions))
    if not found["max_relative"] <= tolerance:
        raise InputError(f"The stock class differs by {found['max_relative']:.1e} of the largest output: nothing was exported.")
    size = sum(path.stat().st_size for path in (folder / FOLDER).glob("*.safetensors"))
    return {"folder": FOLDER, "class": type(stock).__name__, "blocks": len(numbers), "dtype": dtype, "bytes": size, **found}
