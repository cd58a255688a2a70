"""One training loop for every experiment of the book."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from dropoutlib.arguments import integer, positive_integer, require_callable

__all__ = ["accuracy", "fit", "mlp"]


def mlp(*sizes: int, dropout: Callable[[], nn.Module] | None = None, activation: type[nn.Module] = nn.ReLU,
        input_dropout: Callable[[], nn.Module] | None = None) -> nn.Sequential:
    """A multilayer perceptron with dropout after every hidden activation.

    Args:
        sizes: number of features of the input, of each hidden layer and of the output.
        dropout: makes one dropout layer; ``None`` for none.
        activation: class of the hidden activations.
        input_dropout: makes the dropout layer of the input; ``None`` for none.

    Returns:
        nn.Sequential: linear layers, activations and dropout layers.

    Raises:
        ValueError: if there are fewer than two sizes.

    Example:
        >>> from dropoutlib import Dropout
        >>> from dropoutlib.experiments import mlp
        >>> [type(layer).__name__ for layer in mlp(64, 32, 10, dropout=lambda: Dropout(0.5))]
        ['Linear', 'ReLU', 'Dropout', 'Linear']
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes has to give the input and the output at least, but got {sizes}")
    layers: list[nn.Module] = [] if input_dropout is None else [input_dropout()]
    for index, (before, after) in enumerate(pairwise(sizes), start=2):
        layers.append(nn.Linear(before, after))
        if index < len(sizes):
            layers.append(activation())
            if dropout is not None:
                layers.append(dropout())
    return nn.Sequential(*layers)


def fit(build: Callable[[], nn.Module], inputs: Tensor, labels: Tensor, *, steps: int, seed: int = 0,
        learning_rate: float = 0.1, momentum: float = 0.9, batch_size: int | None = None, weight_decay: float = 0.0,
        loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
        after_step: Callable[[nn.Module, int], None] | None = None) -> nn.Module:
    """Builds a model and trains it by stochastic gradient descent; the global random state is left as it was.

    Args:
        build: makes the model; called after the seed is set, so that initial weights belong to the seed.
        inputs: training inputs, of shape ``(examples, ...)``.
        labels: training labels, of shape ``(examples, ...)``.
        steps: number of updates.
        seed: seed of the initial weights, of the batches and of the noise.
        learning_rate: step size.
        momentum: momentum of the optimiser.
        batch_size: examples in each batch, drawn with replacement; ``None`` for all of them.
        weight_decay: coefficient of the L2 penalty.
        loss: takes the model's outputs and the labels.
        after_step: called with the model and the number of updates done, after each update.

    Returns:
        nn.Module: the trained model, in evaluation mode.

    Raises:
        TypeError: if ``build`` is a model and not a function that makes one, ``loss`` cannot be called, or a number of
            updates or examples is none.
        ValueError: if ``steps`` is negative, ``batch_size`` below 1, or there are not as many labels as inputs.
    """
    if isinstance(build, nn.Module):
        raise TypeError("build has to be a function that makes a model, so that initial weights belong to the seed, "
                        f"but got the model {type(build).__name__}")
    if integer("steps", steps) < 0:
        raise ValueError(f"steps has to be at least 0, but got {steps}")
    if batch_size is not None:
        positive_integer("batch_size", batch_size)
    require_callable("loss", loss)
    if len(inputs) != len(labels):
        raise ValueError(f"labels has to have as many examples as inputs, {len(inputs)}, but got {len(labels)}")
    with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
        torch.manual_seed(seed)
        model = build().to(inputs.device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum,
                                    weight_decay=weight_decay)
        for step in range(steps):
            batch = slice(None) if batch_size is None else torch.randint(len(inputs), (batch_size,),
                                                                         device=inputs.device)
            optimizer.zero_grad()
            loss(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            if after_step is not None:
                after_step(model, step + 1)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Fraction of the examples whose largest output is the label; the model is used in the mode it is in."""
    found = model(inputs).argmax(dim=-1)
    if found.shape != labels.shape or not len(labels):
        raise ValueError(f"labels has to have one label for each output, of shape {tuple(found.shape)}, but got the "
                         f"shape {tuple(labels.shape)}")
    return (found == labels).float().mean().item()
