"""Keeps libraries from telling what nobody here can act on: kernels for other machines, casts, processors of images."""

import logging
import warnings

LOGGERS = (
    "torchao",  # of kernels for other machines, each time that diffusers looks for it; so do the next two
    "torch.utils._pytree",
    "diffusers.quantizers.torchao.torchao_quantizer",
    "diffusers.configuration_utils",  # that entries are ignored: which are known, common.models.honoured_settings says
    "diffusers.models.modeling_utils",  # that a cast keeps no module in float32; what a file lacks, common.models.parts says
    "transformers.utils.import_utils",  # that torchvision is not there for classes which no job uses
)


def install() -> None:
    """Once, before anything can import them: errors alone are told."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")  # of norms that are not fused then
