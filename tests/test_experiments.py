"""The data and the training loop of the experiments."""

import pytest
import torch
from torch import nn

from dropoutlib import Dropout
from dropoutlib.experiments import accuracy, digits, fit, iris, mlp


@pytest.mark.parametrize(("load", "examples", "features", "classes"), [(digits, 1797, 64, 10), (iris, 150, 4, 3)])
def test_a_split_is_a_partition_with_equal_shares(load, examples, features, classes):
    data = load(60, seed=1)
    assert data.train_inputs.shape == (60, features)
    assert data.test_inputs.shape == (examples - 60, features)
    assert data.train_inputs.dtype == torch.float32
    counts = data.train_labels.bincount(minlength=classes)
    assert counts.max() - counts.min() <= 1
    assert data.train_inputs.min() >= 0 and data.train_inputs.max() <= 1


def test_splits_are_reproducible_and_differ_between_seeds():
    first, again, other = digits(100, seed=1), digits(100, seed=1), digits(100, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.train_inputs, other.train_inputs)


def test_label_noise_touches_the_training_labels_alone():
    clean, noisy = digits(1000, seed=1), digits(1000, seed=1, label_noise=0.5)
    assert torch.equal(clean.train_inputs, noisy.train_inputs)
    assert torch.equal(clean.test_labels, noisy.test_labels)
    changed = (clean.train_labels != noisy.train_labels).float().mean().item()
    assert changed == pytest.approx(0.5 * 0.9, abs=0.08)  # five standard deviations
    with pytest.raises(ValueError, match="label_noise has to be a fraction between 0 and 1, but got 2"):
        digits(100, label_noise=2)


def test_mlp_places_dropout_after_every_hidden_activation_and_never_on_the_output():
    model = mlp(64, 32, 16, 10, dropout=lambda: Dropout(0.5), input_dropout=lambda: Dropout(0.2))
    assert [type(layer).__name__ for layer in model] == [
        "Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [type(layer).__name__ for layer in mlp(4, 3, 2, activation=nn.Tanh)] == ["Linear", "Tanh", "Linear"]
    with pytest.raises(ValueError, match="sizes has to give the input and the output"):
        mlp(3)


def test_fit_learns_and_belongs_to_its_seed():
    data = digits(300)

    def train(seed, **options):
        return fit(lambda: mlp(64, 32, 10, dropout=lambda: Dropout(0.2)), data.train_inputs, data.train_labels,
                   steps=100, seed=seed, **options)

    state = torch.random.get_rng_state()
    model, again, other = train(0), train(0), train(1)
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state was touched"
    assert not model.training
    assert accuracy(model, data.test_inputs, data.test_labels) > 0.8
    assert torch.equal(model[0].weight, again[0].weight)
    assert not torch.equal(model[0].weight, other[0].weight)
    with pytest.raises(TypeError, match=r"build has to be a function that makes a model.*Sequential"):
        fit(model, data.train_inputs, data.train_labels, steps=1)
    visited = []
    train(0, batch_size=16, after_step=lambda model, step: visited.append(step))
    assert visited == list(range(1, 101))


def test_an_accuracy_needs_a_label_for_each_output():
    model, x = nn.Linear(4, 3), torch.randn(5, 4)
    for labels in (torch.zeros(5, 1), torch.zeros(1)):
        with pytest.raises(ValueError, match=r"labels has to have one label for each output, of shape \(5,\), but got"):
            accuracy(model, x, labels)
    with pytest.raises(ValueError, match="labels"):
        accuracy(model, x[:0], torch.zeros(0))


@pytest.mark.parametrize(("kind", "words", "options"), [
    (ValueError, "steps has to be at least 0, but got -5", {"steps": -5}),
    (ValueError, "batch_size.*0", {"batch_size": 0}), (ValueError, "batch_size.*-3", {"batch_size": -3}),
    (TypeError, "loss.*mse", {"loss": "mse"}), (TypeError, "steps.*1.5", {"steps": 1.5})])
def test_what_fit_cannot_use_is_named(kind, words, options):
    x, y = torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(kind, match=words):
        fit(lambda: nn.Linear(4, 3), x, y, **{"steps": 1, **options})
    with pytest.raises(ValueError, match="labels has to have as many examples as inputs, 5, but got 4"):
        fit(lambda: nn.Linear(4, 3), x, y[:4], steps=1)


@pytest.mark.parametrize(("kind", "words", "call"), [
    (ValueError, r"num_train has to be from 10 to 1787, .* but got 1795", lambda: digits(1795)),
    (ValueError, "num_train has to be from 10 to 1787", lambda: digits(0)),
    (ValueError, "num_train has to be from 3 to 147", lambda: iris(150)),
    (TypeError, "num_train", lambda: digits(None)), (TypeError, "seed", lambda: digits(100, seed=None)),
    (ValueError, "label_noise.*a", lambda: digits(100, label_noise="a"))])
def test_splits_that_there_are_not_are_named(kind, words, call):
    with pytest.raises(kind, match=words):
        call()
