import pytest
import torch

from common.runtime.seeding import mix_seed, seeded_normal
from common.training.batches import OtherConditions, SeededBatches, TensorRows, training_loader


def test_resumed_stream_equals_the_rest_of_the_whole():
    whole = list(SeededBatches(10, 4, seed=3, stop=9))
    assert list(SeededBatches(10, 4, seed=3, stop=9, start=5)) == whole[5:]
    assert list(SeededBatches(10, 4, seed=4, stop=9)) != whole


def test_every_epoch_visits_every_sample_once():
    pairs = [pair for batch in SeededBatches(10, 5, seed=0, stop=4) for pair in batch]
    assert sorted(index for index, _ in pairs[:10]) == list(range(10))
    assert sorted(index for index, _ in pairs[10:]) == list(range(10))
    assert [position for _, position in pairs] == list(range(20))


def test_noise_does_not_depend_on_neighbours():
    together = seeded_normal([1, 2, 3], (2, 4))
    assert torch.equal(together[1], seeded_normal([2], (2, 4))[0])
    assert mix_seed(1, 2) != mix_seed(2, 1)


def test_loader_yields_rows_with_positions():
    loader = training_loader(TensorRows(value=torch.arange(6) * 10), 2, seed=1, batches=3, start=1)
    batches = list(loader)
    assert [batch["position"].tolist() for batch in batches] == [[2, 3], [4, 5]]
    assert all(value % 10 == 0 for batch in batches for value in batch["value"].tolist())


def test_an_empty_training_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        SeededBatches(0, 2, seed=0, stop=1)


def test_other_conditions_are_of_other_rows_by_position_alone():
    count = 50
    rows = TensorRows(latents=torch.arange(count), states=10 * torch.arange(count), ids=torch.arange(count))
    mixed = OtherConditions(rows, 0.4, seed=3)
    pairs = [(index, 1000 + index) for index in range(count)]
    batch = mixed.__getitems__(pairs)
    own = batch["own_condition"]
    assert torch.equal(batch["latents"], torch.arange(count)) and 10 < (~own).sum() < 30
    assert torch.equal(batch["states"], 10 * batch["ids"]), "all columns of a condition are of one row"
    assert torch.equal(batch["ids"][own], torch.arange(count)[own])
    assert (batch["ids"][~own] != torch.arange(count)[~own]).sum() > 8
    half = mixed.__getitems__(pairs[20:])
    assert all(torch.equal(half[name], batch[name][20:]) for name in batch)
    assert OtherConditions(rows, 0.0, seed=3).__getitems__(pairs)["own_condition"].all()
