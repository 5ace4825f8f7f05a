"""Losses and weights that are no numbers stop a training, and are named."""

import pytest
import torch

from common.errors import InputError
from common.training.nan_guard import check_finite, check_loss


def test_the_broken_term_is_named():
    terms = {"task": torch.tensor(1.0), "output": torch.tensor(torch.nan)}
    check_loss(torch.tensor(1.0), terms, 3)
    with pytest.raises(InputError, match="The output loss is nan at step 3"):
        check_loss(sum(terms.values()), terms, 3)
    with pytest.raises(InputError, match="The total loss is inf at step 3"):
        check_loss(torch.tensor(torch.inf), {"task": torch.tensor(1.0)}, 3)


def test_the_broken_parameter_is_named():
    network = torch.nn.Linear(2, 2)
    check_finite(network, 5)
    with torch.no_grad():
        network.bias[1] = torch.inf
    with pytest.raises(InputError, match="The weights of bias are not finite after step 5"):
        check_finite(network, 5)
