"""What to do where a stage of a job does not fit into memory, told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from common.errors import InputError

PER_PASS = ("rows", "batch_size", "copies", "screen_rows")  # settings of methods: what one forward pass holds


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had no memory left to give."""
    import torch

    told = str(error).lower()
    exhausted = "can't allocate memory" in told or "not enough memory" in told or "out of memory" in told
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and exhausted)


def smaller(cfg: DictConfig, stage: str) -> list[str]:
    """The settings that make a stage need less memory, with the values they have now."""
    if stage == "scoring":
        per_pass = [f"method.{name}={cfg.method[name]}" for name in PER_PASS if cfg.method.get(name)]
        return [*per_pass, f"evaluation.batch_size={cfg.evaluation.batch_size}"]
    if stage == "distilling" and "optimizer" in cfg.distill:
        recipe = cfg.distill
        return [
            f"distill.batch_size={recipe.batch_size} (with distill.accumulate={recipe.accumulate} as much larger)",
            f"distill.gradient_checkpointing={str(recipe.gradient_checkpointing).lower()}",
            f"distill.trainer.precision={recipe.trainer.precision}",
        ]
    if stage == "measuring":
        return [
            f"evaluation.batch_size={cfg.evaluation.batch_size}",
            f"evaluation.latency_batch={cfg.evaluation.latency_batch}",
        ]
    return []


ADVICE = {
    "scoring": "lower one of {}, or score with inference_precision=bf16",
    "distilling": "lower the first of {}, checkpoint gradients (true), train with bf16-mixed, or on more devices",
    "measuring": "lower one of {}",
}


@contextmanager
def memory_advice(stage: str, cfg: DictConfig) -> Iterator[None]:
    """InputError naming the stage and the settings that help where memory runs out inside."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        settings = smaller(cfg, stage)
        advice = ADVICE[stage].format(", ".join(settings)) if settings else "free some, or take a device with more"
        raise InputError(f"out of memory while {stage}: {advice}. The same command goes on from what is done.") from error
