"""Sizes, multiply-accumulates and times of a network and of the modules in it."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.denoisers.denoiser import CLIP_TOKENS, Conditions, architecture_of
from common.diffusion.sampling import predict
from common.runtime.collectives import on_first
from common.runtime.content import content_name
from common.runtime.files import write_json
from common.runtime.strict_json import read_json

FEW_PARAMETERS = 20_000_000


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass; published figures usually omit the attention products QK and AV."""

    total: int
    without_attention_products: int


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_nonzero(module: nn.Module) -> int:
    return sum(int(parameter.count_nonzero()) for parameter in module.parameters())


def probe_inputs(denoiser: nn.Module, given: Conditions | None = None) -> tuple[tuple[torch.Tensor, torch.Tensor], Conditions]:
    """(latents, timestep) and conditions: zeros of the right shapes for one forward pass, on the denoiser's device (or meta).

    given: conditions of one row, for the number of tokens; CLIP's 77 without.
    """
    architecture, weight = architecture_of(denoiser), next(denoiser.parameters())
    latents = weight.new_zeros(1, *architecture.latent_shape(denoiser))
    tokens = given["encoder_hidden_states"].shape[1] if given else CLIP_TOKENS
    return (latents, weight.new_zeros(1, dtype=torch.long)), architecture.probe_conditions(denoiser, tokens)


def shape_twin(denoiser: nn.Module) -> nn.Module:
    """A network of the same configuration, for a forward pass of which only shapes and the graph are wanted.

    It is on the meta device, whose kernels are in Python; a network of few parameters, which passes ten times as fast on the
    CPU, is there, with random weights.
    """
    device = torch.device("cpu" if count_parameters(denoiser) < FEW_PARAMETERS else "meta")
    with device, torch.random.fork_rng(devices=[]):
        return type(denoiser).from_config(denoiser.config).eval()


def count_flops(denoiser: nn.Module, arguments: tuple, conditions: Conditions) -> dict[str, dict[Any, int]]:
    """FLOPs by module and operation of predict(denoiser, *arguments, conditions), counted on a shape_twin."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils._pytree import tree_map_only
    from torch.utils.flop_counter import FlopCounterMode

    twin = shape_twin(denoiser)
    weight = next(twin.parameters())

    def zeros(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tensor, device=weight.device, dtype=weight.dtype if tensor.is_floating_point() else None)

    arguments, conditions = tree_map_only(torch.Tensor, zeros, (arguments, conditions))
    as_products = sdpa_kernel(SDPBackend.MATH)  # FlopCounterMode does not know the CPU's fused attention
    with as_products, FlopCounterMode(display=False) as counter, torch.no_grad():
        predict(twin, *arguments, conditions)
    return counter.get_flop_counts()


def count_macs(denoiser: nn.Module, arguments: tuple, conditions: Conditions) -> Macs:
    """MACs of predict(denoiser, *arguments, conditions): half of PyTorch's FLOPs."""
    by_operation = count_flops(denoiser, arguments, conditions)["Global"]
    products = sum(
        flops for operation, flops in by_operation.items() if "bmm" in str(operation) or "attention" in str(operation)
    )
    total = sum(by_operation.values())
    return Macs(total // 2, (total - products) // 2)


@torch.no_grad()
def site_milliseconds(
    denoiser: nn.Module, sites: Sequence[str], conditions: Conditions | None = None, passes: int = 5
) -> dict[str, float]:
    """Median time of one sample inside the module at each site, on the denoiser's device; "" is the whole network."""
    started: dict[str, float] = {}
    times: dict[str, list[float]] = {site: [] for site in sites}
    synchronize = torch.cuda.synchronize if next(denoiser.parameters()).is_cuda else lambda: None

    def before(site: str, *_: Any) -> None:
        synchronize()
        started[site] = time.perf_counter()

    def after(site: str, *_: Any) -> None:
        synchronize()
        times[site].append(1000 * (time.perf_counter() - started[site]))

    modules = [(site, denoiser.get_submodule(site)) for site in sites]
    handles = [module.register_forward_pre_hook(partial(before, site)) for site, module in modules]
    handles += [module.register_forward_hook(partial(after, site)) for site, module in modules]
    arguments, probe = probe_inputs(denoiser, conditions)
    try:
        for _ in range(passes):
            predict(denoiser, *arguments, probe)
    finally:
        for handle in handles:
            handle.remove()
    return {site: sorted(values)[len(values) // 2] for site, values in times.items()}


def site_costs(
    denoiser: nn.Module,
    sites: Sequence[str],
    unit: str,
    folder: Path | None = None,
    teacher: str = "",
    conditions: Conditions | None = None,
) -> dict[str, float]:
    """What one sample costs inside the module at each site; "" is the whole network.

    unit: "macs", with attention products, or "milliseconds", measured once per teacher, device and list of sites and kept in
    `folder`, so that a rerun decides alike. conditions: one row of the denoiser's conditions (probe_inputs).
    """
    if unit == "macs":
        counts = count_flops(denoiser, *probe_inputs(denoiser, conditions))
        by_module = {name.partition(".")[2]: sum(found.values()) / 2 for name, found in counts.items() if name != "Global"}
        return {site: by_module.get(site, 0.0) for site in sites}

    def measured() -> dict[str, float]:
        if folder is None:
            return site_milliseconds(denoiser, sites, conditions)
        device = next(denoiser.parameters()).device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.processor()}"
        path = folder / f"{content_name(teacher, name, list(sites))}-milliseconds.json"
        if not path.is_file():
            write_json(path, site_milliseconds(denoiser, sites, conditions))
        return read_json(path, "delete it and the times are measured anew", sites)

    return on_first(measured)  # all processes decide by the same times


def checkpoint_bytes(module: nn.Module, dtype: torch.dtype = torch.float16) -> int:
    """Bytes of the parameters and buffers when saved in `dtype`."""
    return sum(tensor.numel() for tensor in module.state_dict().values()) * dtype.itemsize


def peak_memory_mib() -> float:
    """Largest memory so far: of the first CUDA device where there is one, else resident memory of this process."""
    import resource

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
