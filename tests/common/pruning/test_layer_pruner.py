"""What every method that scores layers is told of its scores."""

import pytest

from common.errors import InputError
from common.pruning.layer_pruner import LayerPruner
from tests.small_students import small_unet


@pytest.mark.parametrize(("scores", "told"), [({}, r"leaves out \d+ layers, down_blocks"), ({"all": float("nan")}, "is nan")])
def test_scores_that_are_missing_or_no_numbers(scores, told):
    class Forgetful(LayerPruner):
        def layer_scores(self, unet, layers, calibration, teacher, folder):
            return dict.fromkeys((layer.site for layer in layers), scores["all"]) if scores else {}

    with pytest.raises(InputError, match=told):
        Forgetful(ratio=0.3).plan(small_unet(), None, "", None)
