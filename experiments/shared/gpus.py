"""What GPUs can do, by their maker's data sheets.

How much of it a diffusion U-Net gets is the setting `utilisation`, with these reasons for its defaults:

    half    0.15: BK-SDM-Base took about 300 h on one A100-80GB, 50,000 steps of 256 (its model card), which with images and
            captions encoded on the way, counted as in experiments/dry_run/job_stages.py, is 15 % of 312 TFLOPS; the 60 h of
            steps of 64 are 19 %
    single  0.5: 50 steps of SD-v1 under guidance took 9.5 s in float32 on a TITAN RTX of 16.3 TFLOPS (diffusers'
            documentation, "Speed up inference"), 52 %. Where TF32 is on, as it is for convolutions, less time is needed
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """memory in GiB; peaks in TFLOPS: of half precision matrix products that sum in single precision, dense, and of float32
    outside the tensor cores. bfloat16: whether it computes in that format.
    """

    memory: float
    half: float
    single: float
    bfloat16: bool = True


GPUS = {
    "A100-80GB": Gpu(80, 312, 19.5),
    "A100-40GB": Gpu(40, 312, 19.5),
    "H100": Gpu(80, 989, 67),  # SXM
    "H200": Gpu(140, 989, 67),
    "RTX3090": Gpu(24, 71, 35.6),
    "RTX4090": Gpu(24, 165, 82.6),
    "A10G": Gpu(22, 70, 35),
    "L4": Gpu(22, 121, 30.3),
    "V100": Gpu(32, 125, 15.7, bfloat16=False),
}
