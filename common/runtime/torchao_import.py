"""Keeps torchao quiet, which diffusers imports where it is there, and which tells each time of kernels for other machines."""

import logging

LOGGERS = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def install() -> None:
    """Once, before anything can import torchao: errors alone are told."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
