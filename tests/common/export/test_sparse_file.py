"""Sparse files: every bit comes back, sizes are what is written, damage is named."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from common import load_sparse, save_sparse
from common.errors import InputError
from common.pruning.masks import pack_bits, unpack_bits

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}


class Mixed(nn.Module):
    """Tensors of many types, sparse and dense ones, and values whose bits are easily lost."""

    def __init__(self, fill=True):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, dtype in TYPES.items():
            values = torch.randn(13, 7, generator=generator)
            values[torch.rand(13, 7, generator=generator) < 0.8] = 0
            values[0, :4] = torch.tensor([-0.0, float("inf"), float("nan"), 1e-7])
            self.register_parameter(name, nn.Parameter((values if fill else values * 0).to(dtype)))
        self.register_buffer("counts", torch.tensor([0, 0, 0, -5, 0, 0, 0, 0, 0] * fill or [0] * 9))
        self.register_buffer("flags", torch.tensor([True, False] * 8) if fill else torch.zeros(16, dtype=torch.bool))
        self.register_buffer("scalar", torch.tensor(3.0 * fill))
        self.register_buffer("none", torch.zeros(0, 4))
        self.dense = nn.Linear(5, 5)


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def test_every_bit_comes_back(tmp_path):
    model, other = Mixed(), Mixed(fill=False)
    size = save_sparse(model, tmp_path / "model.safetensors")
    assert load_sparse(tmp_path / "model.safetensors", other) is other
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(bits(ours), bits(theirs)), name
    assert torch.signbit(other.fp32[0, 0]) and other.fp32[0, 0] == 0
    assert size.sparse < size.dense
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {"bits:fp16", "values:fp16", "dense:dense.weight", "dense:scalar"} <= names and "dense:fp16" not in names
    assert not list(tmp_path.glob("*.partial"))


def test_sizes_are_those_of_the_file(tmp_path):
    model = nn.Linear(256, 256, bias=False).half()
    with torch.no_grad():
        model.weight[:, 64:] = 0
        model.weight[:, :64] = 1
    size = save_sparse(model, tmp_path / "model.safetensors")
    assert (size.dense, size.sparse) == (256 * 256 * 2, 256 * 64 * 2 + 256 * 256 // 8)
    assert 0 < (tmp_path / "model.safetensors").stat().st_size - size.sparse < 600


def test_dense_models_do_not_grow(tmp_path):
    model = nn.Linear(32, 32)
    size = save_sparse(model, tmp_path / "model.safetensors")
    assert size.sparse == size.dense


def test_pruned_students_round_trip(tiny_teacher, tmp_path):
    import copy

    from common.pruning.masks import apply_masks
    from l1_diff import reference_masks

    student = copy.deepcopy(tiny_teacher.denoiser).half()
    apply_masks(student, reference_masks(student, 0.7))
    save_sparse(student, tmp_path / "student.safetensors")
    loaded = load_sparse(tmp_path / "student.safetensors", copy.deepcopy(tiny_teacher.denoiser).half())
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(), (1,), (8,), (3, 3), (2, 0)])
def test_packed_bits(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(unpack_bits(pack_bits(mask), shape), mask)
    with pytest.raises(ValueError, match="bytes"):
        unpack_bits(torch.zeros(99, dtype=torch.uint8), shape)


def test_damage_is_named_and_the_model_stays(tmp_path):
    path = tmp_path / "model.safetensors"
    save_sparse(Mixed(), path)
    whole = path.read_bytes()
    model = Mixed(fill=False)
    for damaged in (whole[:-3], whole[:40], b"", whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="model.safetensors is damaged"):
            load_sparse(path, model)
    assert model.fp16.count_nonzero() <= 2 and model.counts.count_nonzero() == 0
    with pytest.raises(InputError, match="no such file"):
        load_sparse(tmp_path / "absent", model)


def test_parts_that_do_not_fit_together(tmp_path):
    from common.export.sparse_file import checksum

    path = tmp_path / "model.safetensors"
    save_sparse(Mixed(), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for change in ({"values:fp16": torch.ones(3).half()}, {"bits:fp16": torch.zeros(2, dtype=torch.uint8)}):
        parts = load_file(path) | change
        save_file(parts, tmp_path / "changed", metadata | {"crc32": checksum(parts)})
        with pytest.raises(InputError, match="changed is damaged"):
            load_sparse(tmp_path / "changed", Mixed())


def test_files_of_other_models(tmp_path):
    save_sparse(nn.Linear(4, 4), tmp_path / "linear")
    with pytest.raises(InputError, match="the file has no 0.bias"):
        load_sparse(tmp_path / "linear", nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(InputError, match="Linear has no bias"):
        load_sparse(tmp_path / "linear", nn.Linear(4, 4, bias=False))
    with pytest.raises(InputError, match=r"weight is torch.float32 \(4, 4\) there, torch.float16 \(4, 4\) in Linear"):
        load_sparse(tmp_path / "linear", nn.Linear(4, 4).half())
    with pytest.raises(InputError, match=r"\(4, 4\) there, torch.float32 \(4, 3\)"):
        load_sparse(tmp_path / "linear", nn.Linear(3, 4))
    save_file({"weight": torch.ones(4, 4)}, tmp_path / "plain")
    with pytest.raises(InputError, match="not written by save_sparse"):
        load_sparse(tmp_path / "plain", nn.Linear(4, 4))
