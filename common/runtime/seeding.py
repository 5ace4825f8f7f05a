"""Seeds and noise as functions of numbers alone: equal on every platform, whatever was drawn before."""

import numpy as np
import torch


def mix_seed(*parts: int) -> int:
    """One 63-bit seed out of several non-negative integers (NumPy's SeedSequence), equal on every platform."""
    low, high = np.random.SeedSequence(parts).generate_state(2, dtype=np.uint32)
    return (int(high) << 32 | int(low)) & (2**63 - 1)


def generator_for(*parts: int) -> torch.Generator:
    """A CPU generator seeded by mix_seed(parts)."""
    return torch.Generator().manual_seed(mix_seed(*parts))


def seeded_normal(seeds: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise (len(seeds), *shape): row i depends on seeds[i] alone, not on its neighbours."""
    return torch.stack([torch.randn(shape, generator=generator_for(seed)) for seed in seeds])


class SharedNoise:
    """Noise from one generator in the order of the samples, each drawn by itself: as a diffusers pipeline draws that is called
    with one caption after the other and the same CPU generator.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.restart()

    def restart(self) -> None:
        self.generator, self.drawn = torch.Generator().manual_seed(self.seed), 0

    def __call__(self, indices: list[int], shape: tuple[int, ...]) -> torch.Tensor:
        """Noise (len(indices), *shape) of the samples with these numbers, which must ascend; those before are passed over."""
        if indices[0] < self.drawn:
            self.restart()
        noise = []
        for index in indices:
            while self.drawn <= index:
                latest = torch.randn(shape, generator=self.generator)
                self.drawn += 1
            noise.append(latest)
        return torch.stack(noise)
