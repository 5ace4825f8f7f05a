"""L1-Diff ("Towards Tiny Diffusion"): unstructured pruning by magnitude and gradient, trained under L1 regularisation.

The authors' README and their code differ: README's score, penalty, threshold and regrowth are `variant=published`, what the
code does (layer-wise magnitude of convolutions, masks held) is `variant=reference`.
"""

from l1_diff.algorithm import importance
from l1_diff.masks import reference_masks
from l1_diff.sparsity import sparsity

__all__ = ["importance", "reference_masks", "sparsity"]
