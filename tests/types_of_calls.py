"""What a type checker says of calls: ``mypy`` reads this file, nothing runs it.

A mistake that the types no longer notice leaves its comment without a use, which mypy reports.
"""

import torch

import dropoutlib
from dropoutlib import functional


def calls(x: torch.Tensor, layer: dropoutlib.Dropout) -> None:
    y: torch.Tensor = layer(x, noise=layer.draw(x), generator=None)
    layer(y, nosie=3)  # type: ignore[call-arg]
    dropoutlib.Droput(0.5)  # type: ignore[attr-defined]
    layer(x, layer.draw(x))  # type: ignore[call-arg]
    dropoutlib.DropConnectLinear(8, 4)(x, nosie=3)  # type: ignore[call-arg]
    dropoutlib.ConcreteDropout(torch.nn.Linear(8, 4))(x, nosie=3)  # type: ignore[call-arg]
    dropoutlib.MaxPoolDropout2d(2)(x, nosie=3)  # type: ignore[call-arg]
    dropoutlib.DropConnectLinear(8, 4, inference="guess")  # type: ignore[arg-type]
    dropoutlib.VariationalDropoutLinear(8, 4, kind="C")  # type: ignore[arg-type]
    functional.dropout(x, nosie=3)  # type: ignore[call-arg]
    functional.dropout(x, 0.5, True, False, x)  # type: ignore[call-arg]


def predictions(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [dropoutlib.predict(model, x, task="classification").entropy,
            dropoutlib.predict(model, x, 10, "classification", class_axis=1).entropy,
            dropoutlib.predict(model, x, 10, "regression", precision=1.0).entropy,  # type: ignore[attr-defined]
            dropoutlib.predict(model, x, 10, "regression").samples]
