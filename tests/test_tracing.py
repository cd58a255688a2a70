"""Models with layers of the library in torchvision's feature extractors, which torch.fx traces."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dropoutlib
from dropoutlib import replace

NEW = {nn.Dropout: lambda old: dropoutlib.SpatialDropout2d(old.p), nn.Linear: dropoutlib.ConcreteDropout}


def test_a_feature_extractor_of_a_model_after_replace() -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction", exc_type=ImportError)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Sequential(nn.Flatten(), nn.Linear(144, 2)))
    replace(model, NEW)
    assert [name for name in extraction.get_graph_node_names(model)[0] if name != "input"] == ["0", "1", "2.0", "2.1"]
    extractor = extraction.create_feature_extractor(model, {"1": "maps", "2.1": "logits"})
    x = torch.ones(2, 3, 8, 8)
    for mode in (True, False):
        extractor.train(mode)
        model.train(mode)
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        output = extractor(x)
        assert torch.equal(output["logits"], expected)
        assert bool((output["maps"] == 0).all((2, 3)).any()) is mode
