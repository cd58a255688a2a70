"""The contract itself: a wrong layer has to fail the check that is named beside it, and an opt-out has to be needed."""

from __future__ import annotations

import copy
import math

import pytest
import test_arguments
import test_gradients
import test_law
import test_transforms
import torch
from subjects import (
    OPT_OUTS,
    Layer,
    LayerWithWeights,
    subject,
)
from torch import Tensor, nn

import dropoutlib
from dropoutlib import functional
from dropoutlib.methods import facts

CHECKS = {**test_law.CHECKS, **test_gradients.CHECKS, **test_transforms.CHECKS, **test_arguments.CHECKS}


@pytest.mark.parametrize(("name", "check"), [pair for pair in OPT_OUTS if (pair[0], "*") not in OPT_OUTS])
def test_an_opt_out_is_needed(name: str, check: str) -> None:
    with pytest.raises((AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration,
                        ValueError)):
        CHECKS[check](subject(name), torch.device("cpu"))


class Planted(dropoutlib.Dropout):
    """The right layer, to be spoilt in one place."""

    def keep(self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        drawn = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator) >= self.p
        return drawn if noise is None else noise.bool()

    def apply(self, x: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, x / (1 - self.p), 0)

    def forward(self, input, *, noise=None, generator=None):
        if not self.training:
            return input
        return self.apply(input, self.keep(input, noise, generator))


class DividesByP(Planted):
    def apply(self, x, keep):
        return torch.where(keep, x / self.p, 0)


class ForgetsToScale(Planted):
    def apply(self, x, keep):
        return torch.where(keep, x, 0)


class KeepsWithProbabilityP(Planted):
    def keep(self, x, noise, generator):
        return torch.rand_like(x) <= self.p if noise is None else noise.bool()


class SharesOverTheBatch(Planted):
    def keep(self, x, noise, generator):
        return super().keep(x[:1], None, generator).expand(x.shape) if noise is None else noise.bool()


class SharesWithinAnExample(Planted):
    def keep(self, x, noise, generator):
        return super().keep(x[:, :1], None, generator).expand(x.shape) if noise is None else noise.bool()


class SharesBetweenHalves(Planted):
    def keep(self, x, noise, generator):
        half = super().keep(x[: len(x) // 2], None, generator)
        return torch.cat([half, half]) if noise is None else noise.bool()


class DrawsOnce(Planted):
    def keep(self, x, noise, generator):
        if noise is None and getattr(self, "drawn", None) is None:
            self.drawn = super().keep(x, None, generator)
        return self.drawn if noise is None else noise.bool()


class Multiplies(Planted):
    def apply(self, x, keep):
        return x * keep / (1 - self.p)


class _Redraws(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        ctx.p = p
        return x * (torch.rand_like(x) >= p) / (1 - p)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (torch.rand_like(gradient) >= ctx.p) / (1 - ctx.p), None


class RedrawsInBackward(Planted):
    def forward(self, input, *, noise=None, generator=None):
        return _Redraws.apply(input, self.p)


class ForgetsTheTestRule(dropoutlib.WeightScalingDropout):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) if self.training else input


class ScalesAtBothTimes(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) if self.training else input * (1 - self.p)


class IgnoresEvaluation(Planted):
    def forward(self, input, *, noise=None, generator=None):
        return self.apply(input, self.keep(input, noise, generator))


class DrawsInEvaluation(Planted):
    def forward(self, input, *, noise=None, generator=None):
        noisy = self.apply(input, self.keep(input, noise, generator))
        return noisy if self.training else input


class IgnoresTheGenerator(Planted):
    def keep(self, x, noise, generator):
        return super().keep(x, noise, None)


class FixesPAtConstruction(dropoutlib.Dropout):
    def __init__(self, p):
        super().__init__(p)
        self.first_p = p

    def forward(self, input, **keywords):
        return functional.dropout(input, self.first_p, self.training, **keywords)


class AcceptsAnyP(Planted):
    def __init__(self, p):
        super().__init__()
        self.p = p


class LosesTheMemoryFormat(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return super().forward(input.contiguous(), **keywords)


class WritesIntoItsInput(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return input.copy_(super().forward(input, **keywords))


class WidensHalfPrecision(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return super().forward(input.float(), **keywords)


class ChangesTheVariance(dropoutlib.GaussianDropout):
    """The variance of the raw mask, p(1 - p), as some articles print it."""

    def forward(self, input, *, noise=None, generator=None):
        return input * (1 + math.sqrt(self.p * (1 - self.p)) * torch.randn_like(input))


class TakesTheVarianceForTheDeviation(dropoutlib.GaussianDropout):
    def forward(self, input, *, noise=None, generator=None):
        return input * (1 + self.p / (1 - self.p) * torch.randn_like(input))


class WrongClosedForm(dropoutlib.WeightScalingDropout):
    def variance(self, input):
        return self.p / (1 - self.p) * input**2


class PlantedWeights(nn.Linear):
    """DropConnect as one writes it, to be spoilt in one place."""

    def __init__(self, features: int, p: float, **where: object) -> None:
        super().__init__(features, features, bias=False, **where)
        self.p = p

    def keep(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.rand(*x.shape[:1], *self.weight.shape, device=x.device, generator=generator) >= self.p

    def draw(self, input, *, generator=None):
        return self.keep(input, generator)

    def forward(self, input, *, noise=None, generator=None):
        if not self.training:
            return nn.functional.linear(input, self.weight)
        keep = self.keep(input, generator) if noise is None else noise.bool()
        weight = torch.where(keep, self.weight / (1 - self.p), 0)
        return (weight @ input[..., None])[..., 0]

    def mean(self, input):
        return nn.functional.linear(input, self.weight)

    def variance(self, input):
        return nn.functional.linear(input**2, self.p / (1 - self.p) * self.weight**2)


class SharesTheWeightMaskOverTheBatch(PlantedWeights):
    def keep(self, x, generator):
        return super().keep(x[:1], generator)


class MasksTheInputForAllOutputs(PlantedWeights):
    def keep(self, x, generator):
        return super().keep(x, generator)[:, :1]


class IgnoresTheGeneratorForWeights(PlantedWeights):
    def keep(self, x, generator):
        return super().keep(x, None)


class ScalesWeightsByP(PlantedWeights):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) * ((1 - self.p) / self.p if self.training else 1)


class _RedrawsWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, p):
        ctx.p = p
        ctx.save_for_backward(weight)
        return ((torch.rand(len(x), *weight.shape) >= p) * weight / (1 - p) @ x[..., None])[..., 0]

    @staticmethod
    def backward(ctx, gradient):
        weight, = ctx.saved_tensors
        masked = (torch.rand(len(gradient), *weight.shape) >= ctx.p) * weight / (1 - ctx.p)
        return (masked.mT @ gradient[..., None])[..., 0], None, None


class RedrawsWeightsInBackward(PlantedWeights):
    def forward(self, input, *, noise=None, generator=None):
        return _RedrawsWeights.apply(input, self.weight, self.p)


class DrawsWeightsInEvaluation(PlantedWeights):
    def forward(self, input, **keywords):
        noisy = super().forward(input, **keywords)
        torch.rand(())
        return noisy


class KeepsTheScaleAtTestTime(PlantedWeights):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) / (1 if self.training else 1 - self.p)


class DrawsLessThanACall(dropoutlib.Dropout):
    def draw(self, input, *, generator=None):
        return super().draw(input[:1], generator=generator).expand(input.shape)


class DrawsAgainWhenCalled(dropoutlib.Dropout):
    def draw(self, input, *, generator=None):
        super().draw(input, generator=generator)
        return super().draw(input, generator=generator)


class ForgetsTheMaskInTheGradientOfTheBias(dropoutlib.DropConnectLinear):
    subject = "DropConnectLinear with bias"

    def forward(self, input, *, noise=None, generator=None):
        output = super().forward(input, noise=noise, generator=generator)
        return output if noise is None else output + (self.bias - self.bias.detach())


class DrawsElsewiseWhenDifferentiated(dropoutlib.Dropout):
    def forward(self, input, *, noise=None, generator=None):
        if torch._C._are_functorch_transforms_active():
            torch.rand(())
        return super().forward(input, noise=noise, generator=generator)


class DrawsElsewiseWhenWatched(dropoutlib.Dropout):
    def forward(self, input, *, noise=None, generator=None):
        if torch._C._len_torch_dispatch_stack():
            torch.rand(())
        return super().forward(input, noise=noise, generator=generator)


class IsTracedThrough(dropoutlib.Dropout):
    def __call__(self, *arguments, **options):
        return nn.Module.__call__(self, *arguments, **options)

    def forward(self, input, *, noise=None, generator=None):
        return nn.functional.dropout(input, self.p, self.training)


class DropsEachWindow(dropoutlib.AvgPoolDropout1d):
    def forward(self, input, *, noise=None, generator=None):
        output = nn.functional.avg_pool1d(input, self.kernel_size, self.stride, self.padding)
        return functional.dropout(output, self.p, self.training, generator=generator)


class SharesAMaskOfAPoolOverTheChannels(dropoutlib.MaxPoolDropout1d):
    def forward(self, input, *, noise=None, generator=None):
        if self.training and noise is None:
            noise = self.draw(input[:, :1], generator=generator)
        return super().forward(input, noise=noise)


class DropsAfterTheMaximum(dropoutlib.MaxPoolDropout1d):
    def forward(self, input, *, noise=None, generator=None):
        if not self.training or noise is None:
            return super().forward(input, generator=generator)
        return super().forward(input, noise=torch.ones_like(noise)) * super().forward(
            torch.ones_like(input), noise=noise)


class ScalesBeforeAMaximum(dropoutlib.MaxPoolDropout1d):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) / ((1 - self.p) if self.training else 1)


class MultipliesInAPool(dropoutlib.AvgPoolDropout1d):
    def forward(self, input, *, noise=None, generator=None):
        noise = self.draw(input, generator=generator) if noise is None else noise
        return nn.functional.avg_pool1d(input * noise, self.kernel_size, self.stride, self.padding) / (1 - self.p)


class DropsTheMinimum(dropoutlib.MaxDrop):
    def forward(self, input, *, noise=None, generator=None):
        if not self.training:
            return input
        keep = self.draw(input, generator=generator) if noise is None else noise.bool()
        places = input.detach().flatten(-2)
        smallest = nn.functional.one_hot(places.argmin(-1), places.shape[-1]).reshape(input.shape).bool()
        return torch.where(smallest & ~keep, 0, input) / (1 - self.p / places.shape[-1])


class ForgetsToScaleTheRest(dropoutlib.MaxDrop):
    def forward(self, input, **keywords):
        places = input.shape[-1] * input.shape[-2]
        return super().forward(input, **keywords) * ((1 - self.p / places) if self.training else 1)


class DrawsARateForEveryElement(dropoutlib.StochasticRateDropout):
    def forward(self, input, *, noise=None, generator=None):
        if noise is not None or not self.training:
            return super().forward(input, noise=noise)
        rate, uniform = torch.rand((2, *input.shape), dtype=input.dtype, generator=generator)
        rate = self.low + (self.high - self.low) * rate
        return torch.where(uniform >= rate, input / (1 - rate), 0)


class DrawsTheRateOnce(dropoutlib.StochasticRateDropout):
    def forward(self, input, *, noise=None, generator=None):
        if not hasattr(self, "rate"):
            self.rate = self.draw(input).rate
        return super().forward(input, noise=(self.rate, torch.rand_like(input) >= self.rate))


class TakesTheMeanRate(dropoutlib.StochasticRateDropout):
    """The variance at the mean of the rate."""

    def variance(self, input):
        rate = (self.low + self.high) / 2
        return rate / (1 - rate) * input**2


class PicksTheMaximum(dropoutlib.StochasticPool2d):
    def forward(self, input, **keywords):
        pool = nn.functional.max_pool2d(input, self.kernel_size, self.stride, self.padding)
        return pool if self.training else super().forward(input, **keywords)


PLANTED = [
    (DividesByP, "check_exact_moments"),
    (DividesByP, "check_statistics"),
    (ForgetsToScale, "check_exact_moments"),
    (ForgetsToScale, "check_statistics"),
    (KeepsWithProbabilityP, "check_statistics"),
    (SharesOverTheBatch, "check_statistics"),
    (SharesWithinAnExample, "check_statistics"),
    (SharesBetweenHalves, "check_statistics"),
    (DrawsOnce, "check_statistics"),
    (Multiplies, "check_zero_means_zero"),
    (Multiplies, "check_p_one"),
    (RedrawsInBackward, "check_same_mask"),
    (RedrawsInBackward, "check_compile"),
    (ForgetsTheTestRule, "check_test_rule"),
    (ForgetsTheTestRule, "check_exact_moments"),
    (ScalesAtBothTimes, "check_test_rule"),
    (IgnoresEvaluation, "check_evaluation"),
    (IgnoresEvaluation, "check_export"),
    (DrawsInEvaluation, "check_evaluation"),
    (IgnoresTheGenerator, "check_generator"),
    (IgnoresTheGenerator, "check_checkpoint_refuses_generator"),
    (FixesPAtConstruction, "check_p_assigned"),
    (AcceptsAnyP, "check_bad_p"),
    (LosesTheMemoryFormat, "check_memory_format"),
    (WritesIntoItsInput, "check_strides"),
    (WidensHalfPrecision, "check_dtypes"),
    (WidensHalfPrecision, "check_autocast"),
    (ChangesTheVariance, "check_statistics"),
    (TakesTheVarianceForTheDeviation, "check_statistics"),
    (WrongClosedForm, "check_exact_moments"),
    (SharesTheWeightMaskOverTheBatch, "check_statistics"),
    (MasksTheInputForAllOutputs, "check_statistics"),
    (IgnoresTheGeneratorForWeights, "check_generator"),
    (ScalesWeightsByP, "check_exact_moments"),
    (ScalesWeightsByP, "check_statistics"),
    (RedrawsWeightsInBackward, "check_same_mask"),
    (DrawsWeightsInEvaluation, "check_evaluation"),
    (KeepsTheScaleAtTestTime, "check_test_rule"),
    (DrawsLessThanACall, "check_draw"),
    (DrawsAgainWhenCalled, "check_draw"),
    (ForgetsTheMaskInTheGradientOfTheBias, "check_draw"),
    (DrawsElsewiseWhenDifferentiated, "check_seed"),
    (DrawsElsewiseWhenWatched, "check_seed"),
    (IsTracedThrough, "check_symbolic_trace"),
    (DropsEachWindow, "check_exact_moments"),
    (DropsEachWindow, "check_statistics"),
    (SharesAMaskOfAPoolOverTheChannels, "check_statistics"),
    (DropsAfterTheMaximum, "check_exact_moments"),
    (ScalesBeforeAMaximum, "check_exact_moments"),
    (ScalesBeforeAMaximum, "check_statistics"),
    (MultipliesInAPool, "check_zero_means_zero"),
    (DropsTheMinimum, "check_exact_moments"),
    (DropsTheMinimum, "check_p_one"),
    (DropsTheMinimum, "check_statistics"),
    (ForgetsToScaleTheRest, "check_exact_moments"),
    (DrawsARateForEveryElement, "check_statistics"),
    (DrawsTheRateOnce, "check_statistics"),
    (TakesTheMeanRate, "check_exact_moments"),
    (PicksTheMaximum, "check_statistics"),
]


def planted(layer: type[nn.Module]) -> Layer:
    """The subject of the layer that was spoilt, with the spoilt one in its place."""
    if issubclass(layer, PlantedWeights):
        return LayerWithWeights(lambda p, n, **where: layer(n, p, **where))
    kind = copy.copy(subject(getattr(layer, "subject", facts(layer).name)))
    right = kind.make

    def make(*arguments: object, **where: object) -> nn.Module:
        module = right(*arguments, **where)
        if layer.__init__ is not type(module).__init__:  # has an argument p alone
            return layer(*arguments)
        module.__class__ = layer
        return module

    kind.make = make
    return kind


@pytest.mark.parametrize(("layer", "check"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_bug_is_caught(layer: type[nn.Module], check: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        CHECKS[check](planted(layer), torch.device("cpu"))


# What only the library's own layers keep, not the shortest ones above.
_BEYOND = {"check_bad_p", "check_memory_format", "check_p_one", "check_checkpoint_refuses_generator"}


WITHOUT_THE_BUG = {(base, check) for base in (Planted, PlantedWeights) for layer, check in PLANTED
                   if issubclass(layer, base) and check not in _BEYOND}


@pytest.mark.parametrize(("base", "check"), sorted(WITHOUT_THE_BUG, key=str))
def test_the_layer_without_the_bug_passes(base: type[nn.Module], check: str) -> None:
    CHECKS[check](planted(base), torch.device("cpu"))
