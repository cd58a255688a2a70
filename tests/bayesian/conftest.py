"""Masks of these tests are drawn from one seed: two draws of a few maps are equal now and then."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
