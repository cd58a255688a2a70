"""What calls change in a model is put back, whatever it is."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropoutlib import audit, propagate_moments
from dropoutlib.state import state_kept


class Changes(nn.Module):
    """Holds one of all that is kept, and changes it in a call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counted", torch.zeros(3))
        self.register_buffer("none", None)
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("deleted", torch.ones(2))
        self.register_buffer("unset", torch.full((2,), torch.nan))
        self.register_buffer("grows", torch.zeros(0, 4), persistent=False)
        self.register_buffer("resized", torch.zeros(2))
        self.register_buffer("retyped", torch.ones(()))
        self.steps, self.list, self.keys, self.names = 0, [1, [2]], {"queue": deque([1])}, {"a"}
        self.array, self.pair = np.zeros(2), (torch.zeros(2), torch.ones(2).to(torch.float8_e4m3fn))
        self.generators = [torch.Generator().manual_seed(1), random.Random(3), np.random.default_rng(4),
                           np.random.RandomState(5)]
        self.written, self.exchanged = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.fixed = np.zeros(1)
        self.fixed.flags.writeable = False

    def forward(self, x: Any) -> Any:
        self.counted += 1
        self.none = torch.ones(2)
        self.sparse = self.sparse * 2
        del self.deleted
        self.unset.zero_()
        self.grows = torch.cat([self.grows, torch.ones(1, 4)])
        self.resized.resize_(5).fill_(3)
        self.retyped = self.retyped.double()
        self.steps += 1
        self.list.append(3)
        self.list[1].append(4)
        self.keys["queue"].append(2)
        self.keys["new"] = 1
        self.names.add("b")
        self.array[0] = 1
        self.pair[0].add_(1)
        self.pair[1].copy_(torch.zeros(2))
        for generator in self.generators:
            _draw(generator)
        self.written.data.mul_(2)
        self.exchanged = nn.Parameter(torch.zeros(2))
        self.part = nn.Linear(2, 2)
        self.register_buffer("late", torch.zeros(1))
        return x


def _draw(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return torch.rand((), generator=generator).item()
    return generator.random() if hasattr(generator, "random") else generator.rand()


def _state(model: nn.Module) -> str:
    generators = [generator.get_state() if isinstance(generator, torch.Generator) else
                  generator.getstate() if isinstance(generator, random.Random) else
                  generator.bit_generator.state if isinstance(generator, np.random.Generator) else
                  generator.get_state() for generator in model.generators]
    return str([{name: value for name, value in vars(model).items() if name != "generators"}, generators])


def test_everything_is_put_back() -> None:
    model = Changes()
    before, same = _state(model), [id(value) for value in (*model._buffers.values(), model.list, model.keys)]
    with state_kept(model, with_values=True):
        model(1)
        assert _state(model) != before
    assert _state(model) == before
    assert [id(value) for value in (*model._buffers.values(), model.list, model.keys)] == same


def test_it_is_put_back_after_an_error() -> None:
    model = Changes()
    before = _state(model)
    with pytest.raises(KeyError), state_kept(model, with_values=True):
        model(1)
        raise KeyError
    assert _state(model) == before


def test_what_did_not_change_is_not_written() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    versions = [buffer._version for buffer in model.buffers()]
    with state_kept(model, with_values=True):
        model(torch.ones(3, 2))
    assert [buffer._version for buffer in model.buffers()] == versions


class Cached(nn.Module):
    """A table that is filled at the first call, as rotary positions are, and a number that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(8, 4), persistent=False)
        self.filled = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.filled < len(x):
            self.table[:len(x)] = torch.arange(len(x))[:, None].sin()
            self.filled = len(x)
        return x + self.table[:len(x)]


class Grows(nn.Module):
    """Keeps what it has seen, in a buffer that is another tensor after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, x])
        return x + len(self.seen)


@pytest.mark.parametrize("front", [Cached, Grows])
@pytest.mark.parametrize("call", [audit, propagate_moments])
def test_a_model_with_a_state_goes_on_as_if_it_had_not_been_called(front: Callable[[], nn.Module],
                                                                   call: Callable[..., Any]) -> None:
    model, x = nn.Sequential(front(), nn.Dropout(0.1), nn.Linear(4, 2)).eval(), torch.randn(3, 4)
    model.load_state_dict(other := {name: value.clone() for name, value in model.state_dict().items()})
    again = nn.Sequential(front(), nn.Dropout(0.1), nn.Linear(4, 2)).eval()
    again.load_state_dict(other)
    found = call(model, x)
    expected = again(x)
    assert torch.equal(model(x), expected)
    if call is audit:
        assert found == ()
    else:
        torch.testing.assert_close(found.mean, expected)
