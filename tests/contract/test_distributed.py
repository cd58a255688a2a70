"""Trained by two processes: copies of the model, and models and inputs whose parts lie on both."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable

import pytest
import torch
from subjects import HELD, ON_VECTORS, assert_same, subject
from torch import Tensor, nn

import dropoutlib
from dropoutlib import MaxNorm, kl_divergence

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")

CPU = torch.device("cpu")


def _in_two_processes(rank: int, function: Callable[..., None], directory: str) -> None:
    faulthandler.enable()   # a crash says where, and so does a process that waits for ever
    faulthandler.dump_traceback_later(300, exit=True)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(rank)
    function(rank, directory)
    torch.distributed.barrier()     # neither goes while the other may still wait for it
    os._exit(0)     # nor do torch's own threads end one by one, which has crashed behind a test that was over


def in_two_processes(function: Callable[..., None], directory: object) -> None:
    torch.multiprocessing.spawn(_in_two_processes, (function, str(directory)), nprocs=2)


def network(name: str) -> tuple[nn.Sequential, Tensor]:
    """The layer between others, and an input; the same weights at every call."""
    kind = subject(name)
    x = kind.example((4, 3), CPU, torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Linear(3, 3) if not kind.axes else nn.Identity()
        last = nn.LazyLinear(1)
        model = nn.Sequential(first, kind(0.5, x), nn.Flatten(), last)
        model(x)
    return model, x


def train(model: nn.Module, x: Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if any(hasattr(part, "kl") for part in model.modules()):
            loss = loss + kl_divergence(model) / 100
        loss.backward()
        optimizer.step()


def data_parallel(rank: int, directory: str) -> None:
    x = torch.ones(16, 8)
    layers = [subject(name)(0.5, x) for name in ON_VECTORS]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 8), *layers, nn.Linear(8, 1)))
    train(model, x)
    torch.save([parameter.detach() for parameter in model.parameters()], f"{directory}/parameters{rank}")
    torch.save([layer(x).detach() for layer in layers], f"{directory}/noise{rank}")


def test_distributed_data_parallel(tmp_path) -> None:
    in_two_processes(data_parallel, tmp_path)
    parameters = [torch.load(tmp_path / f"parameters{rank}") for rank in range(2)]
    assert_same(parameters[0], parameters[1])
    assert all(parameter.isfinite().all() for parameter in parameters[0])
    noise = [torch.load(tmp_path / f"noise{rank}") for rank in range(2)]
    assert not any(torch.equal(first, second) for first, second in zip(*noise, strict=True))


def sharded(rank: int, directory: str) -> None:
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for name in HELD:
        if name == "PatchDropout":  # in evaluation its output has another size, and the layer behind it has one
            continue
        for every_layer in (False, True):
            model, x = network(name)
            MaxNorm(model, 0.5)
            for part in model if every_layer else ():
                if list(part.parameters()):
                    fully_shard(part, mesh=mesh)
            fully_shard(model, mesh=mesh)
            train(model, x)
            for part in model.modules():
                if isinstance(part, (nn.Linear, nn.Conv2d)):
                    assert (dropoutlib.divergence.gathered(part.weight).flatten(1).norm(dim=1) < 0.50001).all(), name
            whole, _ = network(name)
            model, x = network(name)
            fully_shard(model, mesh=mesh)
            assert_same(model.eval()(x), whole.eval()(x))
            if any(hasattr(part, "kl") for part in model.modules()):
                model, _ = network(name)
                fully_shard(model, mesh=mesh)
                (divergence := kl_divergence(model)).backward()
                (expected := kl_divergence(whole)).backward()
                torch.testing.assert_close(divergence, expected)
                for parameter, same in zip(model.parameters(), whole.parameters(), strict=True):
                    assert (parameter.grad is None) == (same.grad is None), name
                    if same.grad is not None:
                        torch.testing.assert_close(parameter.grad.full_tensor(), same.grad)


def test_fully_sharded_data_parallel(tmp_path) -> None:
    in_two_processes(sharded, tmp_path)


def distributed_inputs(rank: int, directory: str) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for name in HELD:
        kind = subject(name)
        x = kind.example((4, 4), CPU, torch.float32)
        if list(kind(0.5, x).parameters()):
            continue
        for place in (Shard(0), Shard(1), Replicate()):
            layer, parts = kind(0.5, x), distribute_tensor(x, mesh, [place])
            torch.manual_seed(0 if place == Replicate() else rank)  # on the CPU torch leaves it to the caller
            y = layer(parts)
            assert isinstance(y, DTensor) and y.shape == layer(x).shape, name
            if place == Replicate():
                copies = [torch.empty_like(y.to_local()) for _ in range(2)]
                torch.distributed.all_gather(copies, y.to_local().contiguous())
                assert_same(copies[0], copies[1])
            torch.testing.assert_close(layer.eval()(parts).full_tensor(), layer(x))


def test_inputs_whose_parts_lie_on_both_processes(tmp_path) -> None:
    in_two_processes(distributed_inputs, tmp_path)


def sharded_as_before(rank: int, directory: str) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    for original in (False, True):
        model, x = network("VariationalDropoutLinear")
        wrapped = FullyShardedDataParallel(model, device_id=CPU, use_orig_params=original)
        MaxNorm(wrapped, 0.5)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=1.0)
        wrapped(x).square().mean().backward()
        optimizer.step()
        with FullyShardedDataParallel.summon_full_params(wrapped):
            assert all((part.weight.norm(dim=1) < 0.50001).all() for part in model if isinstance(part, nn.Linear))
        model, x = network("Dropout")
        MaxNorm(model, 0.5)
        wrapped = FullyShardedDataParallel(model, device_id=CPU, use_orig_params=original)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=1.0)
        wrapped(x).square().mean().backward()
        with pytest.raises(RuntimeError, match="make MaxNorm of the wrapped model"):
            optimizer.step()


@pytest.mark.filterwarnings("ignore")
def test_max_norm_of_a_model_that_fsdp_wraps(tmp_path) -> None:
    in_two_processes(sharded_as_before, tmp_path)
