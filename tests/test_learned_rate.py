"""Rates that are learned, whichever layer learns them."""

import pytest
import torch
from torch import nn

from dropoutlib import ConcreteDropout, VariationalDropoutLinear


class Within(nn.Module):
    """A parametrization of a logit."""

    def forward(self, logit: torch.Tensor) -> torch.Tensor:
        return logit.clamp(-3, 3)

    def right_inverse(self, logit: torch.Tensor) -> torch.Tensor:
        return logit


@pytest.mark.parametrize(("layer", "name"), [(ConcreteDropout(nn.Linear(4, 3)), "p_logit"),
                                             (VariationalDropoutLinear(4, 3), "log_alpha")])
def test_a_rate_that_is_parametrized_can_be_assigned(layer: nn.Module, name: str) -> None:
    nn.utils.parametrize.register_parametrization(layer, name, Within())
    layer.p = 0.9
    assert layer.p.detach() == pytest.approx(0.9)
    layer.p = 0.99
    assert (layer.p < 0.96).all()   # that of the bound
