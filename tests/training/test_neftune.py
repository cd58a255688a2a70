"""What is NEFTune's own: the size of the noise for every length of a text, the conventions of others, what is added."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dropoutlib import NEFTune, audit, functional, monte_carlo, propagate_moments
from dropoutlib.noise import Uniform


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]])    # padded behind, and in front
LENGTHS = MASK * MASK.sum(1, keepdim=True)


@pytest.mark.parametrize("alpha", [0.5, 5.0])
@pytest.mark.parametrize(("tokens", "features"), [(1, 1), (8, 8), (3, 40)])
def test_the_squared_norm_of_the_noise_does_not_depend_on_the_size_of_a_text(alpha: float, tokens: int,
                                                                            features: int) -> None:
    examples = 20_000
    x, layer = torch.randn(examples, tokens, features, dtype=torch.float64), NEFTune(alpha)
    added = layer(x) - x
    assert added.abs().max() <= alpha / math.sqrt(tokens * features) + 1e-12
    squares = added.square().sum((1, 2))
    deviation = alpha**2 * math.sqrt(4 / 45 / (tokens * features))
    assert abs(squares.mean() - alpha**2 / 3) < 6 * deviation / math.sqrt(examples)
    assert abs(squares.std() - deviation) < 0.05 * deviation
    torch.testing.assert_close(layer.variance(x), torch.full_like(x, alpha**2 / (3 * tokens * features)))
    assert layer.mean(x) is x


def test_the_noise_of_a_text_is_that_without_padding() -> None:
    x, layer = torch.randn(3, 6, 4, dtype=torch.float64), NEFTune(5.0)
    noise = layer.draw(x)
    y = layer(x, lengths=LENGTHS, noise=noise)
    for row, mask in enumerate(MASK.bool()):
        alone = layer(x[row, mask][None], noise=noise[row, mask][None])
        torch.testing.assert_close(y[row, mask][None], alone, rtol=0, atol=1e-15)
        assert torch.equal(y[row, ~mask], x[row, ~mask])
    expected = torch.where(MASK.bool(), 25 / (3 * MASK.sum(1, keepdim=True) * 4), 0).unsqueeze(-1).expand(3, 6, 4)
    torch.testing.assert_close(layer.variance(x, lengths=LENGTHS), expected.double(), rtol=1e-6, atol=0)
    per_example = layer(x, lengths=MASK.sum(1, keepdim=True), noise=noise)
    assert torch.equal(per_example[MASK.bool()], y[MASK.bool()])


def test_texts_of_a_pack_have_lengths_of_their_own() -> None:
    x, layer = torch.randn(1, 7, 4, dtype=torch.float64), NEFTune(5.0)
    noise = layer.draw(x)
    y = layer(x, lengths=torch.tensor([3, 3, 3, 4, 4, 4, 4]), noise=noise)
    for text in (slice(0, 3), slice(3, 7)):
        torch.testing.assert_close(y[:, text], layer(x[:, text], noise=noise[:, text]), rtol=0, atol=1e-15)


def of_the_authors(embeds: Tensor, mask: Tensor, alpha: float, noise: Tensor) -> Tensor:
    """The code of their experiments, with the mask of the tokenizer."""
    mask = mask.to(embeds)
    magnitude = alpha / torch.sqrt(mask.sum(1) * embeds.size(-1))
    return embeds + noise * mask.unsqueeze(2) * magnitude.view(-1, 1, 1)


def of_transformers(embeds: Tensor, alpha: float, noise: Tensor) -> Tensor:
    """Their hook, and the short code that the authors published."""
    return embeds + noise * alpha / torch.sqrt(torch.tensor(embeds.size(1) * embeds.size(2)))


def test_the_conventions_of_the_authors_and_of_transformers() -> None:
    x, layer = torch.randn(3, 6, 4, dtype=torch.float64), NEFTune(5.0)
    noise = layer.draw(x)
    torch.testing.assert_close(layer(x, lengths=LENGTHS, noise=noise), of_the_authors(x, MASK, 5.0, noise))
    torch.testing.assert_close(layer(x, noise=noise), of_transformers(x, 5.0, noise), rtol=1e-6, atol=1e-6)
    theirs, right = (y[1, :2] - x[1, :2] for y in (of_transformers(x, 5.0, noise), of_the_authors(x, MASK, 5.0, noise)))
    torch.testing.assert_close(theirs * math.sqrt(6 / 2), right, rtol=1e-6, atol=1e-6)


def test_the_output_is_affine_in_the_input() -> None:
    x, layer = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), NEFTune(5.0)
    noise = layer.draw(x)
    (gradient,) = torch.autograd.grad(layer(x, noise=noise).sin().sum(), x)
    torch.testing.assert_close(gradient, layer(x, noise=noise).cos())
    torch.testing.assert_close(layer(x, noise=noise) - x, layer(torch.zeros_like(x), noise=noise), rtol=0, atol=1e-14)
    jacobian = torch.func.jvp(lambda x: layer(x, noise=noise), (x.detach(),), (x.detach(),))[1]
    assert torch.equal(jacobian, x)
    bad = torch.full((1, 2, 2), math.inf)
    assert torch.equal(layer(bad), bad)


def test_alpha_is_read_at_every_call_and_zero_adds_nothing() -> None:
    x, layer = torch.randn(2, 3, 4), NEFTune(0.0)
    before = torch.get_rng_state()
    assert layer(x) is x and layer.eval()(x) is x and (layer.variance(x) == 0).all()
    assert torch.equal(torch.get_rng_state(), before)
    layer.train().alpha = 2
    noise = layer.draw(x)
    assert torch.equal(layer(x, noise=noise), NEFTune(2.0)(x, noise=noise))
    assert repr(NEFTune(2)) == "NEFTune(alpha=2.0)"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_a_long_text(dtype: torch.dtype) -> None:
    """The number of entries is none of float16, and the noise of a single one is rounded once."""
    x, layer = torch.zeros(1, 4096, 64, dtype=dtype), NEFTune(5.0)
    noise = layer.draw(x)
    assert noise.dtype == torch.float32 and len(noise.unique()) > 200_000
    for lengths in (None, torch.full((1, 1), 4096)):
        added = layer(x, lengths=lengths, noise=noise)
        assert torch.equal(added, (noise * 5 / 512).to(dtype))


def test_compiled_for_sizes_that_change() -> None:
    torch._dynamo.reset()
    layer = NEFTune(5.0)
    compiled = torch.compile(lambda x, noise, lengths: (layer(x), layer(x, noise=noise, lengths=lengths)),
                             backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((5, 12, 3), (70, 40, 8), (2, 197, 64)):
            x, lengths = torch.randn(shape), torch.randint(1, shape[1], shape[:2])
            noise = layer.draw(x)
            drawn, given = compiled(x, noise, lengths)
            torch.testing.assert_close(given, layer(x, noise=noise, lengths=lengths))
            assert not torch.equal(drawn, x)
            assert not torch.equal(drawn, compiled(x, noise, lengths)[0])


def test_gradients_under_checkpoints_and_transforms_are_those_of_the_noise() -> None:
    x, layer = torch.randn(4, 3, 2, dtype=torch.float64), NEFTune(5.0)
    noise, lengths = layer.draw(x), torch.randint(1, 3, (4, 3))
    mapped = torch.vmap(lambda x, noise, lengths: layer(x[None], noise=noise[None], lengths=lengths[None])[0])(
        x, noise, lengths)
    torch.testing.assert_close(mapped, layer(x, noise=noise, lengths=lengths))
    assert torch.autograd.gradcheck(lambda x: layer(x, noise=noise, lengths=lengths), (x.clone().requires_grad_(),))
    leaf = x.clone().requires_grad_()
    y = torch.utils.checkpoint.checkpoint(lambda x: layer(x) ** 2, leaf, use_reentrant=False)
    (gradient,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close(gradient.square(), 4 * y.detach())     # not so if the second forward draws anew


def test_in_a_model_behind_an_embedding_and_by_a_hook() -> None:
    words = torch.randint(50, (4, 9))
    model = nn.Sequential(nn.Embedding(50, 8), NEFTune(5.0), nn.Flatten(), nn.Linear(72, 2))
    assert not torch.equal(model(words), model(words))
    assert torch.equal(model.eval()(words), model(words))
    assert not audit(model, words)
    with monte_carlo(model, "fixed"), torch.no_grad():
        assert torch.equal(model(words), model(words)) and torch.allclose(model(words)[:1], model(words[:1]))
    with pytest.raises(NotImplementedError, match=r"1 \(NEFTune\) cannot be followed"):
        propagate_moments(model[1:], torch.randn(4, 9, 8))
    embedding, noise = nn.Embedding(50, 8), NEFTune(5.0)
    handle = embedding.register_forward_hook(lambda module, inputs, output: noise(output))
    assert not torch.equal(embedding(words), embedding(words))
    handle.remove()
    assert torch.equal(embedding(words), embedding(words))


def test_uniform_numbers_between_other_limits() -> None:
    law, x = Uniform(-1.0, 3.0), torch.empty(200_000, dtype=torch.float64)
    numbers = law.sample(x)
    assert (law.mean, law.variance) == (1.0, 16 / 12) and repr(law) == "Uniform(low=-1.0, high=3.0)"
    assert -1 <= numbers.min() < -0.99 and 2.99 < numbers.max() < 3
    assert abs(numbers.mean() - 1) < 6 * math.sqrt(16 / 12 / 200_000)
    assert torch.equal(law.sample(x, noise=numbers), numbers)


def test_bad_arguments_are_named() -> None:
    x, layer = torch.randn(2, 7, 3), NEFTune(5.0)
    for kind, words, call in [
        (ValueError, "alpha has to be at least 0 and finite, but got -1", lambda: NEFTune(-1)),
        (ValueError, "alpha has to be at least 0 and finite, but got nan", lambda: NEFTune(math.nan)),
        (TypeError, "alpha has to be a real number", lambda: NEFTune("5")),
        (ValueError, "alpha.*got inf", lambda: functional.neftune(x, math.inf)),
        (RuntimeError, r"\(N, tokens, features\), but got the shape \(7, 3\)", lambda: layer(x[0])),
        (RuntimeError, r"\(N, tokens, features\).*complex64", lambda: layer(x * 1j)),
        (RuntimeError, r"\(N, tokens, features\)", lambda: layer.variance(x[0])),
        (ValueError, r"lengths.*\(2, 7\) of the tokens.*\(2,\)", lambda: layer(x, lengths=torch.tensor([3, 4]))),
        (ValueError, r"lengths has to be whole numbers, but got torch.bool: those of a mask are mask \* mask",
         lambda: layer(x, lengths=torch.ones(2, 7, dtype=torch.bool))),
        (ValueError, "lengths has to be whole numbers, but got torch.float32", lambda: layer(x, lengths=x[..., 0])),
        (TypeError, "lengths has to be a tensor of numbers of tokens, but got int", lambda: layer(x, lengths=3)),
        (ValueError, "a number in lengths has to be at least 0, but got -1",
         lambda: layer(x, lengths=torch.tensor([[3], [-1]]))),
        (TypeError, "lengths has to be a tensor", lambda: NEFTune().eval()(x, lengths=3)),
        (ValueError, r"lengths.*of the tokens", lambda: NEFTune().eval()(x, lengths=torch.tensor([3, 4]))),
        (ValueError, "noise has to be uniform numbers between -1 and 1", lambda: layer(x, noise=x + 3)),
        (ValueError, "and low <= high, but got low=1, high=0", lambda: Uniform(1, 0)),
        (ValueError, "low and high have to be numbers of at most 1.7e", lambda: Uniform(0.0, math.inf)),
        (ValueError, "low and high have to be numbers of at most 1.7e", lambda: Uniform(-3e38, 0.0)),
    ]:
        with pytest.raises(kind, match=words):
            call()
