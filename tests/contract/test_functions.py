"""Functions draw as layers do: to draw and then to apply is to call, bit for bit."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from subjects import assert_raises, assert_same, example
from torch import fx

from dropoutlib import SpatialDropout2d, functional

WEIGHT, BIAS = ("weight", (4, 6)), ("bias", (4,))

# For each function and its variants: the shape of the input, and arguments; a name and a shape stand for a tensor.
CALLS: dict[str, tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
    "dropout": ((5, 6), (0.4,), {}),
    "weight_scaling_dropout": ((5, 6), (0.4,), {}),
    "locked_dropout": ((5, 3, 6), (0.4,), {}),
    "gaussian_dropout": ((5, 6), (0.4,), {}),
    "alpha_dropout": ((5, 6), (0.4,), {}),
    "feature_alpha_dropout": ((5, 6, 3), (0.4,), {}),
    "drop_connect_linear": ((5, 6), (WEIGHT, BIAS, 0.4), {"activation": torch.tanh}),
    "drop_connect_linear without bias": ((5, 3, 6), (WEIGHT,), {}),
    "drop_connect_linear shared": ((5, 6), (WEIGHT, BIAS), {"sharing": "batch"}),
    "drop_connect_linear sampled": ((5, 6), (WEIGHT, BIAS), {"training": False, "activation": torch.tanh,
                                                            "inference": "sampled", "num_samples": 7}),
    "drop_connect_linear at p = 1": ((5, 6), (WEIGHT, BIAS, 1.0), {}),
    "standout_linear": ((5, 6), (WEIGHT, BIAS), {"alpha": 0.7, "beta": -0.2}),
    "standout_linear with a belief": ((5, 6), (WEIGHT, BIAS), {"belief_weight": WEIGHT, "belief_bias": BIAS}),
    "targeted_dropout_linear": ((5, 6), (WEIGHT, BIAS, 0.4), {}),
    "targeted_dropout_linear of units": ((5, 6), (WEIGHT, BIAS, 0.4), {"mode": "unit"}),
    "fast_dropout_linear": ((5, 6), (WEIGHT, BIAS, 0.4), {}),
    "variational_dropout_linear": ((5, 6), (WEIGHT, BIAS, 0.3), {}),
    "variational_dropout_linear of kind B": ((5, 6), (WEIGHT, BIAS, 0.3), {"kind": "B"}),
    "drop_connect_conv1d": ((2, 3, 7), (("weight", (4, 3, 3)), BIAS), {"stride": 2, "padding": 1, "p": 0.4}),
    "drop_connect_conv1d sampled": ((2, 3, 7), (("weight", (4, 3, 3)), BIAS), {
        "training": False, "activation": torch.tanh, "inference": "sampled", "num_samples": 3}),
    "drop_connect_conv2d": ((2, 4, 7, 6), (("weight", (4, 2, 3, 3)),), {"groups": 2, "sharing": "batch"}),
    "fast_dropout_conv1d": ((2, 3, 7), (("weight", (4, 3, 3)), BIAS), {"stride": 2, "padding": 1, "p": 0.4}),
    "fast_dropout_conv2d": ((2, 4, 7, 6), (("weight", (4, 2, 3, 3)), BIAS), {"groups": 2}),
    "variational_dropout_conv1d": ((2, 3, 7), (("weight", (4, 3, 3)), BIAS, 0.3), {"stride": 2, "padding": 1}),
    "variational_dropout_conv2d": ((2, 4, 7, 6), (("weight", (4, 2, 3, 3)), BIAS, 0.3), {"groups": 2}),
    "sparse_variational_linear": ((5, 6), (WEIGHT, BIAS, -3.0), {}),
    "sparse_variational_conv1d": ((2, 3, 7), (("weight", (4, 3, 3)), BIAS, -3.0), {"stride": 2, "padding": 1}),
    "sparse_variational_conv2d": ((2, 4, 7, 6), (("weight", (4, 2, 3, 3)), BIAS, -3.0), {"groups": 2}),
    "log_normal_dropout": ((5, 4, 3), (BIAS, BIAS), {}),
    "log_normal_dropout shared": ((5, 4), (BIAS, BIAS), {"sharing": "batch"}),
    "concrete_dropout": ((5, 6), (-0.5,), {"temperature": 0.3}),
    "concrete_dropout2d": ((2, 3, 4, 4), (-0.5,), {}),
    **{f"spatial_dropout{axes}d": ((2, 3, *(4,) * axes), (0.4,), {}) for axes in (1, 2, 3)},
    **{f"{kind}_pool_dropout{axes}d": ((2, 3, *(6,) * axes), (3, 2, 1), {"p": 0.4})
       for kind in ("max", "avg") for axes in (1, 2, 3)},
    "stochastic_pool2d": ((2, 3, 6, 6), (3, 2), {}),
    "cutout": ((4, 3, 8, 8), (3, 2), {}),
    **{f"drop_block{axes}d": ((2, 3, *(4,) * axes), (0.4, 2), {"scale": "expected"}) for axes in (1, 2, 3)},
    "stochastic_depth": ((8, 3, 4), (0.4,), {}),
    "stochastic_depth of the batch": ((8, 3, 4), (0.4, "batch"), {}),
    "drop_path": ((8, 3, 4), (0.4,), {}),
    "drop_path without the scale": ((8, 3, 4), (0.4,), {"scale_by_keep": False}),
    "neftune": ((4, 6, 3), (5.0,), {}),
    "patch_dropout": ((4, 6, 3), (0.4,), {}),
    "patch_dropout without a prefix": ((4, 6, 3), (0.4,), {"num_prefix_tokens": 0}),
    "max_drop": ((4, 3, 8, 8), (0.4,), {}),
    "max_drop of channels": ((4, 3, 8, 8), (0.4, "channel"), {}),
    "stochastic_rate_dropout": ((5, 6), (0.1, 0.6), {}),
    "stochastic_rate_dropout with a normal rate": ((5, 6), (0.1, 0.6, 0.3, 0.1), {}),
    "attention_dropout": ((2, 4, 3), (("weight", (2, 5, 3)), ("bias", (2, 5, 6)), 0.4), {}),
    "attention_dropout that is causal": ((2, 4, 3), (("weight", (4, 3)), ("bias", (2, 4, 6))), {
        "p": 0.4, "is_causal": True}),
    "condition_dropout": ((8, 3, 4), (("weight", (3, 4)), 0.4), {}),
    "lora_linear": ((5, 6), (WEIGHT, ("weight", (2, 6)), ("weight", (4, 2)), BIAS, 2.0, 0.4), {}),
    "stochastic_rate_dropout at rate 0": ((5, 6), (0.0, 0.0), {}),
    "nested_dropout": ((8, 3, 4), (0.4,), {}),
    "nested_dropout to sizes": ((8, 3, 4), (1.0, [1, 2, 4], [3.0, 2.0, 1.0], -1), {}),
    "shake_drop": ((8, 3, 4), (0.4,), {}),
    "shake_drop of elements": ((8, 3, 4), (0.4, (0.0, 2.0), (1.0, 1.0), "batch", "element"), {}),
    "swapout": ((5, 6), (("weight", (5, 6)), 0.2, 0.4), {}),
}


def arguments(call: str, device: str) -> tuple[Any, torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """The function, its input and further arguments."""
    def made(value: Any) -> Any:
        is_named = isinstance(value, tuple) and value[0] in ("weight", "bias")
        return example(value[1], torch.device(device)) / 6 if is_named else value

    shape, further, options = CALLS[call]
    return (getattr(functional, call.split()[0]), example(shape, torch.device(device)).requires_grad_(),
            tuple(made(value) for value in further), {name: made(value) for name, value in options.items()})


def test_every_function_is_here() -> None:
    # but for one that draws nothing, and those whose input has no gradient: see test_recurrent.py and
    # test_graph_dropout.py
    others = {"draw", "max_norm_", "embedding_dropout", "dropout_edge", "dropout_node"}
    assert {call.split()[0] for call in CALLS} == set(functional.__all__) - others, "a function needs a call in CALLS"


@pytest.mark.parametrize("call", CALLS)
def test_to_draw_and_then_to_apply_is_to_call(call: str, device: str) -> None:
    function, x, further, options = arguments(call, device)
    once, twice = (torch.Generator(device).manual_seed(7) for _ in range(2))
    y = function(x, *further, **options, generator=once)
    noise = functional.draw(function, x, *further, **options, generator=twice)
    assert_same(once.get_state(), twice.get_state())
    again = function(x, *further, **options, noise=noise)
    assert_same(again, y)
    assert_same(torch.autograd.grad(again.sin().sum(), x), torch.autograd.grad(y.sin().sum(), x))


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_drawn_outside_of_training(call: str, device: str) -> None:
    function, x, further, options = arguments(call, device)
    rule = {"inference": "mean"} if "sampled" in call else {}
    assert_raises(ValueError, "draws nothing", lambda: functional.draw(
        function, x, *further, **options | rule | {"training": False}))


@pytest.mark.parametrize("call", [call for call in CALLS if "activation" not in CALLS[call][2]])  # no node takes one
def test_a_function_is_one_node_of_a_symbolic_trace(call: str, device: str) -> None:
    function, x, further, options = arguments(call, device)
    traced = fx.symbolic_trace(lambda x: getattr(functional, call.split()[0])(x, *further, **options))
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [function]
    for _ in range(2):
        state = torch.get_rng_state()
        expected = function(x, *further, **options)
        torch.set_rng_state(state)
        assert_same(traced(x), expected)
    (node,) = (node for node in pickle.loads(pickle.dumps(traced)).graph.nodes if node.op == "call_function")
    assert node.target is function


def test_a_tracer_that_cannot_follow_is_told_why() -> None:
    words = "got Proxy: torch.fx can follow a layer that is a part of the traced module"
    assert_raises(TypeError, words, lambda: fx.symbolic_trace(SpatialDropout2d()))
    dropout = functional.dropout
    assert_raises(TypeError, words, lambda: fx.symbolic_trace(lambda x: dropout(x)))


def test_what_draws_nothing_is_named() -> None:
    x = torch.ones(3)
    assert_raises(TypeError, "max_norm_", lambda: functional.draw(functional.max_norm_, x))
    assert_raises(TypeError, "noise", lambda: functional.draw(functional.dropout, x, noise=x))
    assert_raises(TypeError, "rate", lambda: functional.draw(functional.dropout, x, rate=0.5))
    assert_raises(ValueError, "1.5", lambda: functional.draw(functional.dropout, x, 1.5))
    assert_raises(RuntimeError, "shape", lambda: functional.draw(functional.max_pool_dropout2d, x, 2))
    assert_raises(RuntimeError, "shape", lambda: functional.draw(functional.cutout, x, 2))
