"""Builds data/musicnn: musicnn's weights as safetensors, read from its TensorFlow checkpoint.

pip install tensorflow-cpu                                           # for this alone
pip download --no-deps musicnn==0.1.0 && unzip musicnn-0.1.0-*.whl   # or unpack its .tar.gz
python -m experiments.datasets.build_musicnn --package musicnn --out data/musicnn
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from common.metrics.musicnn import MusicNN

MODEL = "MTT_musicnn"  # trained on MagnaTagATune
LAYERS = {  # of common.metrics.musicnn.MusicNN: number of the convolution, and of the normalisation
    **{f"front.{index}": (index, index + 1) for index in range(5)},
    **{f"middle.{index}": (index + 5, index + 6) for index in range(3)},
}


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name."""
    from tensorflow.compat.v1.train import NewCheckpointReader

    reader = NewCheckpointReader(f"{folder}/")  # its files have endings alone: .index, .data-00000-of-00001
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def convert(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The state of common.metrics.musicnn.MusicNN."""
    state: dict[str, np.ndarray] = {}

    def norm(target: str, number: int) -> None:
        source = f"batch_normalization_{number}" if number else "batch_normalization"
        names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        state.update({f"{target}.{ours}": tensors[f"{source}/{theirs}"] for ours, theirs in names.items()})

    norm("norm", 0)
    for target, (convolution, normalisation) in LAYERS.items():
        source = f"conv2d_{convolution}" if convolution else "conv2d"
        kernel = tensors[f"{source}/kernel"].transpose(3, 2, 0, 1)  # filters, 1, frames, mels or channels
        state[f"{target}.conv.weight"] = kernel if target.startswith("front") else kernel[:, 0].transpose(0, 2, 1)
        state[f"{target}.conv.bias"] = tensors[f"{source}/bias"]
        norm(f"{target}.norm", normalisation)
    norm("pooled_norm", 9)
    state |= {"dense.weight": tensors["dense/kernel"].T, "dense.bias": tensors["dense/bias"]}
    norm("dense_norm", 10)
    return {name: torch.from_numpy(value.copy()).half() for name, value in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="the folder musicnn of the unpacked package")
    parser.add_argument("--out", type=Path, default=Path("data/musicnn"))
    arguments = parser.parse_args()
    if not (arguments.package / MODEL / ".index").is_file():
        raise SystemExit(f"build_musicnn: {arguments.package} has no {MODEL}/.index; unpack PyPI's musicnn 0.1.0 there.")
    state = convert(read_checkpoint(arguments.package / MODEL))
    missing = set(MusicNN().state_dict()) - set(state)
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"build_musicnn: the checkpoint lacks {', '.join(sorted(missing))}.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(state, arguments.out / "musicnn.safetensors")
    print(f"{sum(value.numel() for value in state.values())} numbers in {arguments.out / 'musicnn.safetensors'}")


if __name__ == "__main__":
    main()
