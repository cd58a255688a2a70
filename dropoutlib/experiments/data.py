"""Real data that ships with scikit-learn, split as an experiment needs it, and tables that took long to measure."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropoutlib.arguments import integer, one_of

__all__ = ["Split", "diabetes", "digits", "iris", "measured", "mnist"]


class Split(NamedTuple):
    """Inputs and labels to train on and to test on.

    Inputs are float32 of shape ``(examples, features)``, labels int64 of shape ``(examples,)``.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def digits(num_train: int = 1000, *, seed: int = 0, label_noise: float = 0.0) -> Split:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 pixels between 0 and 1.

    Args:
        num_train: number of labelled examples to train on, drawn with equal shares of the ten classes; the rest is
            for testing.
        seed: seed of the split and of the label noise.
        label_noise: fraction of the training labels that is replaced by a random class.

    Returns:
        Split: inputs of 64 features.

    Example:
        >>> from dropoutlib.experiments import digits
        >>> digits(200).train_inputs.shape
        torch.Size([200, 64])
    """
    return _split("digits", 16.0, num_train, seed, label_noise)


def iris(num_train: int = 75, *, seed: int = 0, label_noise: float = 0.0) -> Split:
    """The 150 flowers of Fisher's iris data: four lengths in decimetres, three species.

    Args:
        num_train: number of labelled examples to train on; the rest is for testing.
        seed: seed of the split and of the label noise.
        label_noise: fraction of the training labels that is replaced by a random class.

    Returns:
        Split: inputs of 4 features.
    """
    return _split("iris", 10.0, num_train, seed, label_noise)


def diabetes() -> tuple[Tensor, Tensor]:
    """The 442 patients of scikit-learn's diabetes data: ten features, and the progress of the disease after a year.

    Returns:
        tuple[Tensor, Tensor]: inputs of shape ``(442, 10)`` and targets of shape ``(442,)``, float64; each
        feature and the target have mean zero and variance one.

    Example:
        >>> from dropoutlib.experiments import diabetes
        >>> inputs, targets = diabetes()
        >>> inputs.shape, round(targets.var(correction=0).item(), 6)
        (torch.Size([442, 10]), 1.0)
    """
    inputs, targets = (torch.as_tensor(part, dtype=torch.float64) for part in _load("diabetes"))
    standardised = [(part - part.mean(0)) / part.std(0, correction=0) for part in (inputs, targets)]
    return standardised[0], standardised[1]


@cache
def mnist() -> Split:
    """The 70,000 handwritten digits of MNIST, 28 x 28 pixels between 0 and 1, from OpenML.

    scikit-learn fetches them once, checks them and keeps them in its folder of data.

    Returns:
        Split: 60,000 examples to train on and 10,000 for testing, inputs of 784 features.

    Raises:
        OSError: if they are not there and cannot be fetched.
    """
    from sklearn.datasets import fetch_openml, get_data_home

    try:
        pixels, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False)
    except OSError as error:
        raise OSError(f"MNIST is not in {get_data_home()} yet and cannot be fetched from OpenML: {error}") from error
    images = torch.as_tensor(pixels / 255, dtype=torch.float32)
    digit = torch.as_tensor(labels.astype("int64"))
    return Split(images[:60_000], digit[:60_000], images[60_000:], digit[60_000:])


@cache  # an experiment splits the same data many times
def _load(name: str) -> tuple[Any, Any]:
    from sklearn import datasets

    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    return inputs, targets


def _split(name: str, unit: float, num_train: int, seed: int, label_noise: float) -> Split:
    from sklearn.model_selection import train_test_split

    inputs, labels = _load(name)
    classes = int(labels.max()) + 1
    if not classes <= integer("num_train", num_train) <= len(labels) - classes:
        raise ValueError(f"num_train has to be from {classes} to {len(labels) - classes}, for an example of each class "
                         f"to train on and to test on, but got {num_train}")
    integer("seed", seed)
    if not isinstance(label_noise, (int, float)) or not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise has to be a fraction between 0 and 1, but got {label_noise}")
    parts = train_test_split(inputs / unit, labels, train_size=num_train, stratify=labels, random_state=seed)
    train_inputs, test_inputs = (torch.as_tensor(part, dtype=torch.float32) for part in parts[:2])
    train_labels, test_labels = (torch.as_tensor(part, dtype=torch.int64) for part in parts[2:])
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(train_labels), generator=generator) < label_noise
    random_labels = torch.randint(classes, train_labels.shape, generator=generator)
    return Split(train_inputs, torch.where(wrong, random_labels, train_labels), test_inputs, test_labels)


def measured(name: str) -> str:
    """A table that a chapter reads because its numbers take long to measure.

    Args:
        name: of the table; its first line is the command that made it.

    Returns:
        str: the table as it was written.

    Raises:
        ValueError: if there is no such table.

    Example:
        >>> from dropoutlib.experiments import measured
        >>> measured("claims").splitlines()[0]
        'python tests/random_claims.py 100000 --seed 0'
    """
    tables = files(__package__) / "tables"
    one_of("name", name, sorted(entry.name.removesuffix(".txt") for entry in tables.iterdir()))
    return (tables / f"{name}.txt").read_text(encoding="utf-8")
