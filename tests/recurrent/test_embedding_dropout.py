"""What is embedding and locked dropout's own; draws and functions are also in tests/contract."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dropoutlib import Dropout, EmbeddingDropout, LockedDropout, functional
from dropoutlib.enumeration import distribution, masks

P = 0.3
TEXTS = torch.tensor([[0, 1], [1, 2], [0, 0]])  # three steps of two texts
SHARING: dict[str, dict[str, Any]] = {
    "batch": {}, "sample": {"sharing": "sample"}, "sample, batch first": {"sharing": "sample", "batch_first": True}}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def embedding(words: int = 4, features: int = 2, **options: Any) -> EmbeddingDropout:
    return EmbeddingDropout(words, features, dtype=torch.float64, **{"p": P, **options})


# Words: the law


@pytest.mark.parametrize("options", SHARING.values(), ids=SHARING)
def test_covariances_over_all_masks(options: dict[str, Any]) -> None:
    """p/(1 - p) w w' of any two features of a word, wherever it stands; with masks of a text only within the text."""
    layer = embedding(**options)
    texts = TEXTS.T if options.get("batch_first") else TEXTS
    shape = (2, 4) if options else (4,)
    law = distribution(lambda keep: layer(texts, noise=keep), shape, P)
    vectors = layer.weight.detach()[texts].reshape(-1, 1)
    word = texts[..., None].expand(*texts.shape, 2).flatten()
    axis = 0 if options.get("batch_first") else 1
    text = torch.arange(2).reshape((2, 1) if axis == 0 else (1, 2))[..., None].expand(*texts.shape, 2).flatten()
    together = word[:, None] == word
    if options:
        together &= text[:, None] == text
    expected = P / (1 - P) * vectors @ vectors.T * together
    torch.testing.assert_close(law.mean(), layer.weight.detach()[texts], rtol=0, atol=1e-12)
    torch.testing.assert_close(law.covariance(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.mean(texts), law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(texts), law.variance(), rtol=0, atol=1e-12)


def test_the_share_of_dropped_places() -> None:
    """Mean p, variance p(1 - p) times the sum of the squared shares of the words; 1/B of it with masks of B texts."""
    layer = embedding(4, 1)
    nn.init.ones_(layer.weight)
    line = torch.tensor([0, 1, 2, 3, 0, 1])
    squares = 10 / 36

    def share(output: Tensor) -> Tensor:
        return (output == 0).double().mean()

    for texts, options, shape, variance in (
            (line, {}, (4,), squares), (line[:, None].expand(-1, 2), {}, (4,), squares),
            (line[:, None].expand(-1, 2), {"sharing": "sample"}, (2, 4), squares / 2)):
        layer.sharing = options.get("sharing", "batch")
        law = distribution(lambda keep, texts=texts: share(layer(texts, noise=keep)), shape, P)
        assert math.isclose(law.mean().item(), P, abs_tol=1e-12)
        assert math.isclose(law.variance().item(), P * (1 - P) * variance, abs_tol=1e-12)


def test_a_read_out_has_the_squares_of_the_counts() -> None:
    layer, line = embedding(), torch.tensor([0, 0, 0, 1, 2, 2])
    law = distribution(lambda keep: layer(line, noise=keep).sum(), (4,), P)
    scores, counts = layer.weight.detach().sum(1), torch.bincount(line, minlength=4)
    expected = P / (1 - P) * (counts**2 * scores**2).sum()
    assert math.isclose(law.variance().item(), expected.item(), abs_tol=1e-12)


# Words: what is shared


@pytest.mark.parametrize("options", SHARING.values(), ids=SHARING)
def test_a_word_is_dropped_wherever_it_stands(options: dict[str, Any], device: str) -> None:
    layer = embedding(20, 3, p=0.5, device=device, **options)
    texts = torch.randint(20, (40, 6), device=device)
    texts = texts.T if options.get("batch_first") else texts
    dropped = (layer(texts) == 0).all(-1)
    if options.get("batch_first"):
        dropped, texts = dropped.T, texts.T
    columns = [(dropped, texts)] if not options else list(zip(dropped.T, texts.T, strict=True))
    fates = [{(word.item(), gone.item()) for gone, word in zip(gone.flatten(), words.flatten(), strict=True)}
             for gone, words in columns]
    for fate in fates:
        assert len({word for word, _ in fate}) == len(fate), "a word is dropped at one place and kept at another"
        assert {gone for _, gone in fate} == {True, False}
    if options:
        assert len({frozenset(fate) for fate in fates}) > 1, "texts share their mask"


def test_shapes_of_draws(device: str) -> None:
    def shape(words: Tensor, **options: Any) -> tuple[int, ...]:
        return tuple(embedding(7, 2, device=device, **options).draw(words).shape)

    words = torch.zeros(5, 3, dtype=torch.int64, device=device)
    assert shape(words) == shape(words[:, 0]) == shape(words[None]) == shape(words[0, 0]) == (7,)
    assert shape(words, sharing="sample") == (3, 7) and shape(words, sharing="sample", batch_first=True) == (5, 7)
    assert shape(words[:, 0], sharing="sample") == shape(words[:, 0], sharing="sample", batch_first=True) == (7,)


@pytest.mark.parametrize("options", SHARING.values(), ids=SHARING)
def test_unbatched_words_are_one_text(options: dict[str, Any]) -> None:
    layer, line = embedding(20, 3, **options), torch.randint(20, (30,))
    keep = layer.draw(line)
    single = layer(line, noise=keep)
    texts = line[None] if options.get("batch_first") else line[:, None]
    batched = layer(texts, noise=keep[None] if options else keep)
    assert torch.equal(single, batched.squeeze(0 if options.get("batch_first") else 1))


def test_int32_words_and_a_number() -> None:
    layer = embedding(20, 3)
    keep = layer.draw(TEXTS)
    assert torch.equal(layer(TEXTS.int(), noise=keep), layer(TEXTS, noise=keep))
    assert layer(torch.tensor(3)).shape == (3,)
    layer.sharing = "sample"
    assert layer(TEXTS.int()).shape == (3, 2, 3)


# Words: torch's layer


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {}, "padding": {"padding_idx": 1}, "padding from the end": {"padding_idx": -2}, "norm": {"max_norm": 0.5},
    "norm 1": {"max_norm": 0.5, "norm_type": 1.0}, "frequency": {"scale_grad_by_freq": True},
    "sparse": {"sparse": True}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mode", ["p = 0", "evaluation"])
def test_without_noise_it_is_torchs_layer_with_its_gradients(options: dict[str, Any], mode: str, device: str) -> None:
    theirs = nn.Embedding(6, 3, **options, dtype=torch.float64, device=device)
    ours = embedding(6, 3, **options, device=device, **({"p": 0.0} if mode == "p = 0" else {}))
    ours.train(mode == "p = 0").load_state_dict(theirs.state_dict())
    words = torch.randint(6, (5, 4), device=device)
    outputs = [layer(words) for layer in (ours, theirs)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.sin().sum().backward()
    gradients = [layer.weight.grad for layer in (ours, theirs)]
    assert gradients[0].is_sparse is options.get("sparse", False)
    assert torch.equal(*(part.to_dense() for part in gradients))
    assert torch.equal(ours.weight, theirs.weight), "max_norm clips both or none"
    assert list(ours.state_dict()) == list(theirs.state_dict()) and ours.padding_idx == theirs.padding_idx


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_are_those_of_a_masked_lookup(options: dict[str, Any]) -> None:
    """The lookup as torch does it, clipping and padding included, and then the mask."""
    layer, words = embedding(6, 3, **options), torch.randint(6, (5, 4))
    keep = layer.draw(words)
    theirs = nn.Embedding(6, 3, **options, dtype=torch.float64)
    theirs.load_state_dict(layer.state_dict())
    expected = theirs(words) * (keep.double() / (1 - P))[words][..., None]
    output = layer(words, noise=keep)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-14)
    for value in (output, expected):
        value.sin().sum().backward()
    torch.testing.assert_close(layer.weight.grad.to_dense(), theirs.weight.grad.to_dense(), rtol=0, atol=1e-14)
    assert not layer.weight.grad.to_dense()[keep == 0].any()


def test_a_sparse_gradient_holds_the_rows_that_were_read(device: str) -> None:
    layer = embedding(1000, 2, sparse=True, device=device)
    keep = torch.ones(1000, device=device)
    keep[8] = 0
    layer(torch.tensor([7, 8, 7], device=device), noise=keep).sum().backward()
    gradient = layer.weight.grad.coalesce()
    assert gradient.indices().tolist() == [[7, 8]]
    torch.testing.assert_close(gradient.values()[:, 0].tolist(), [2 / (1 - P), 0.0])
    before = layer.weight.detach().clone()
    torch.optim.SparseAdam(layer.parameters()).step()
    assert (layer.weight != before).any(1).nonzero().flatten().tolist() == [7]


def test_padding_is_never_trained_and_keeps_its_vector() -> None:
    layer = embedding(6, 3, padding_idx=5, p=0.0)
    assert not layer.weight[5].any()
    layer(torch.tensor([0, 5])).sum().backward()
    assert layer.weight.grad[0].all() and not layer.weight.grad[1:].any()
    last = embedding(6, 3)      # without padding the last word learns
    last(torch.tensor([5]), noise=torch.ones(6)).sum().backward()
    assert last.weight.grad[5].all()


def test_max_norm_clips_what_is_stored_and_not_what_is_scaled() -> None:
    layer = embedding(2, 2, max_norm=1.0, p=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.6, 0.8], [3.0, 4.0]]))
    law = distribution(lambda keep: layer(torch.tensor([0, 1]), noise=keep), (2,), 0.5)
    expected = torch.tensor([[0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(law.mean(), expected, rtol=0, atol=1e-6)


def test_moments_are_those_of_what_max_norm_leaves() -> None:
    layer, words = EmbeddingDropout(3, 4, p=0.5, max_norm=0.5), torch.tensor([[0, 1, 2]])
    mean, variance = layer.mean(words), layer.variance(words)
    outputs = torch.stack([layer(words, noise=keep) for keep in masks(3)])
    torch.testing.assert_close(mean, outputs.mean(0))
    torch.testing.assert_close(variance, outputs.var(0, correction=0))


def test_a_table_that_also_scores_is_dropped_only_where_it_is_read() -> None:
    layer, scores = embedding(6, 3), nn.Linear(3, 6, bias=False, dtype=torch.float64)
    scores.weight = layer.weight
    keep = torch.tensor([0, 1, 1, 1, 1, 1])
    output = scores(layer(torch.tensor([0, 1]), noise=keep))
    assert not output[0].any() and output[1, 0] != 0
    output.sum().backward()
    assert layer.weight.grad is scores.weight.grad and layer.weight.grad[0].any()


@pytest.mark.parametrize("options", SHARING.values(), ids=SHARING)
def test_gradients_with_the_mask_held_fixed(options: dict[str, Any]) -> None:
    layer = embedding(5, 2, **options)
    keep = layer.draw(TEXTS)

    def function(weight: Tensor) -> Tensor:
        return functional.embedding_dropout(TEXTS, weight, P, noise=keep, **options)

    assert torch.autograd.gradcheck(function, layer.weight)
    assert torch.autograd.gradgradcheck(function, layer.weight)


def test_backward_twice_and_no_change_by_a_call() -> None:
    layer, words = embedding(6, 3), torch.randint(6, (5, 4))
    before = layer.weight.detach().clone()
    loss = layer(words).sin().sum()
    first, second = (torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(layer.weight, before)


def test_a_dropped_infinity_leaves_nothing() -> None:
    layer = embedding(2, 1, p=0.5)
    with torch.no_grad():
        layer.weight[1] = math.inf
    output = layer(torch.tensor([0, 1, 1]), noise=torch.tensor([1, 0]))
    assert output.isfinite().all() and not output[1:].any()
    output.sum().backward()
    assert layer.weight.grad.flatten().tolist() == [2.0, 0.0]
    assert not embedding(2, 1, p=1.0)(torch.tensor([0, 1])).any()


@pytest.mark.parametrize("options", SHARING.values(), ids=SHARING)
def test_copies_of_words(options: dict[str, Any]) -> None:
    layer = embedding(6, 3, **options)
    keep = layer.draw(TEXTS)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(TEXTS, noise=keep), layer(TEXTS, noise=keep)) and repr(other) == repr(layer)


BAD = {
    "sharing": (ValueError, "sharing.*'text'", lambda: embedding(sharing="text")),
    "p": (ValueError, "between 0 and 1.*1.5", lambda: embedding(p=1.5)),
    "batch_first": (TypeError, "batch_first.*1", lambda: embedding(batch_first=1)),
    "sparse": (TypeError, "sparse.*'yes'", lambda: embedding(sparse="yes")),
    "vectors": (RuntimeError, "words.*float64", lambda: embedding()(torch.ones(3, dtype=torch.float64))),
    "a list": (TypeError, "tensor of words.*list", lambda: embedding()([0, 1])),
    "three axes": (RuntimeError, r"\(T, B\).*\(1, 3, 2\)", lambda: embedding(sharing="sample")(TEXTS[None])),
    "a mask of elements": (ValueError, r"noise.*\(3, 2, 2\)", lambda: embedding()(TEXTS, noise=torch.ones(3, 2, 2))),
    "a mask of texts": (ValueError, r"noise.*\(2, 4\)", lambda: embedding()(TEXTS, noise=torch.ones(2, 4))),
    "half kept": (ValueError, "keep mask", lambda: embedding()(TEXTS, noise=torch.full((4,), 0.5))),
    "a mask in evaluation": (ValueError, r"noise.*train\(\)", lambda: embedding().eval()(TEXTS, noise=torch.ones(4))),
    "no sequence": (RuntimeError, r"\(T, B, features\).*\(3,\)", lambda: LockedDropout()(torch.ones(3))),
    "maps": (RuntimeError, r"features.*\(1, 2, 3, 4\)", lambda: LockedDropout()(torch.ones(1, 2, 3, 4))),
    "words": (RuntimeError, "floating point", lambda: LockedDropout()(TEXTS)),
    "locked p": (ValueError, "between 0 and 1.*-0.1", lambda: LockedDropout(-0.1)),
    "locked batch_first": (TypeError, "batch_first", lambda: LockedDropout(batch_first=None)),
}


@pytest.mark.parametrize(("kind", "words", "call"), BAD.values(), ids=BAD)
def test_bad_calls_are_told_why(kind: type[Exception], words: str, call: Any) -> None:
    with pytest.raises(kind, match=words):
        call()


# Features


@pytest.mark.parametrize("batch_first", [False, True])
def test_covariances_of_features_over_all_masks(batch_first: bool) -> None:
    """p/(1 - p) x_s x_t of a feature at two steps; none of two features or two sequences."""
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    layer = LockedDropout(P, batch_first=batch_first)
    given = x.transpose(0, 1) if batch_first else x
    law = distribution(lambda keep: layer(given, noise=keep), (2, 1, 2) if batch_first else (1, 2, 2), P)
    which = torch.arange(4).reshape(1, 2, 2).expand_as(x)
    which = (which.transpose(0, 1) if batch_first else which).flatten()
    values = given.flatten()
    expected = P / (1 - P) * torch.outer(values, values) * (which[:, None] == which)
    torch.testing.assert_close(law.mean(), given, rtol=0, atol=1e-12)
    torch.testing.assert_close(law.covariance(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(given), law.variance(), rtol=0, atol=1e-12)
    assert torch.equal(layer.mean(given), given)


def test_an_average_over_time() -> None:
    """p/(1 - p) times the square of the average; with a mask for each step 1/T of the average square."""
    x = torch.randn(6, 1, 1, dtype=torch.float64)
    for layer, shape, expected in ((LockedDropout(P), (1, 1, 1), x.mean()**2),
                                   (Dropout(P), (6, 1, 1), (x**2).mean() / 6)):
        law = distribution(lambda keep, layer=layer: layer(x, noise=keep).mean(), shape, P)
        assert math.isclose(law.variance().item(), P / (1 - P) * expected.item(), abs_tol=1e-12)


@pytest.mark.parametrize(("shape", "batch_first", "steps"), [
    ((7, 5, 6), False, 0), ((5, 7, 6), True, 1), ((7, 6), False, 0), ((7, 6), True, 0)])
def test_exactly_one_mask_along_time(shape: tuple[int, ...], batch_first: bool, steps: int, device: str) -> None:
    layer = LockedDropout(0.5, batch_first=batch_first)
    output = layer(torch.ones(shape, device=device))
    assert (output == output.select(steps, 0).unsqueeze(steps)).all() and set(output.unique().tolist()) == {0.0, 2.0}
    if len(shape) == 3:
        sequences = output.select(steps, 0)
        assert len(sequences.unique(dim=0)) == 5, "sequences share their mask"
    keep = layer.draw(torch.ones(shape, device=device))
    assert keep.shape == tuple(1 if axis == steps else size for axis, size in enumerate(shape))


def test_batch_first_only_turns_the_axes() -> None:
    x, keep = torch.randn(7, 5, 6), torch.rand(1, 5, 6) >= 0.5
    turned = LockedDropout(0.5, batch_first=True)(x.transpose(0, 1), noise=keep.transpose(0, 1))
    assert torch.equal(LockedDropout(0.5)(x, noise=keep), turned.transpose(0, 1))


def test_one_step_is_dropout() -> None:
    x, keep = torch.randn(1, 5, 6), torch.rand(1, 5, 6) >= 0.5
    assert torch.equal(LockedDropout(P)(x, noise=keep), Dropout(P)(x, noise=keep))


def test_chunks_of_a_sequence_can_keep_their_mask() -> None:
    layer, x = LockedDropout(0.5), torch.randn(8, 3, 4)
    keep = layer.draw(x[:4])
    chunks = torch.cat([layer(part, noise=keep) for part in x.split(4)])
    assert torch.equal(chunks, layer(x, noise=keep))


def test_in_place_and_without_noise() -> None:
    x = torch.randn(4, 3, 2)
    assert LockedDropout(0.0)(x) is x or torch.equal(LockedDropout(0.0)(x), x)
    assert torch.equal(LockedDropout(0.5).eval()(x), x)
    given = x.clone()
    output = LockedDropout(0.5, inplace=True)(given)
    assert output.data_ptr() == given.data_ptr() and not torch.equal(given, x)
    assert "batch_first=True" in repr(LockedDropout(batch_first=True)) and "batch_first" not in repr(LockedDropout())


@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_features(batch_first: bool) -> None:
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    layer = LockedDropout(P, batch_first=batch_first)
    keep = layer.draw(x)
    assert torch.autograd.gradcheck(lambda x: layer(x, noise=keep), x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, noise=keep), x)
    loss = layer(x).sin().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_feature_is_dropped_with_its_rate() -> None:
    x, total = torch.ones(2, 300, 200), 300 * 200
    for p, inverted in itertools.product((0.1, P, 0.8), (False, True)):
        dropped = (LockedDropout(p, batch_first=inverted)(x.transpose(0, 1) if inverted else x) == 0).double().mean()
        assert abs(dropped - p) < 6 * math.sqrt(p * (1 - p) / total)


def test_a_table_that_is_there_is_taken() -> None:
    table = torch.randn(4, 3, dtype=torch.float64)
    layer = EmbeddingDropout.from_pretrained(table, padding_idx=1, p=0.3, sharing="sample")
    of_torch = nn.Embedding.from_pretrained(table, padding_idx=1)
    words = torch.tensor([[0, 1], [2, 2]])
    assert torch.equal(layer.eval()(words), of_torch(words))
    assert layer.weight.requires_grad is of_torch.weight.requires_grad is False
    assert (layer.p, layer.sharing, layer.padding_idx) == (0.3, "sample", 1)
    assert EmbeddingDropout.from_pretrained(table, freeze=False).weight.requires_grad


@pytest.mark.parametrize("lengths", [[5, 2, 3], [5, 5, 1]])
@pytest.mark.parametrize("is_sorted", [False, True])
def test_packed_sequences_have_the_masks_of_their_examples(lengths: list[int], is_sorted: bool) -> None:
    lengths = sorted(lengths, reverse=True) if is_sorted else lengths
    x, layer = torch.randn(5, 3, 4), LockedDropout(P)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)
    padded, _ = pad_packed_sequence(packed)
    noise = layer.draw(packed, generator=torch.Generator().manual_seed(1))
    assert noise.shape == (1, 3, 4) and torch.equal(
        noise, layer.draw(padded, generator=torch.Generator().manual_seed(1)))
    for output in (layer(packed, noise=noise), layer(packed, generator=torch.Generator().manual_seed(1))):
        assert torch.equal(pad_packed_sequence(output)[0], layer(padded, noise=noise))
        assert torch.equal(output.batch_sizes, packed.batch_sizes)
    assert torch.equal(layer(packed, noise=noise[:, :1]).data, layer(packed.data, noise=noise[0, :1]))
    for moment in ("mean", "variance"):
        assert torch.equal(getattr(layer, moment)(packed).data, getattr(layer, moment)(packed.data))
    assert layer.eval()(packed).data is packed.data or torch.equal(layer(packed).data, packed.data)
    assert torch.equal(LockedDropout(0.0)(packed).data, packed.data) and not LockedDropout(1.0)(packed).data.any()
    network = nn.LSTM(4, 4)
    assert network(LockedDropout(P)(network(packed)[0]))[0].data.shape == (sum(lengths), 4)
    with pytest.raises(ValueError, match="noise"):
        LockedDropout(P)(packed, noise=torch.ones(1, 2, 4))
    with pytest.raises(RuntimeError, match="floating point"):
        LockedDropout(P)(packed.to(torch.int64))
    for call in (LockedDropout(P), LockedDropout(P).eval(), LockedDropout(P).variance):
        with pytest.raises(RuntimeError, match=r"sequences of features.*\(10,\)"):
            call(pack_padded_sequence(torch.ones(5, 2), torch.tensor([5, 5])))


def test_a_rate_in_the_place_of_padding_idx_is_refused() -> None:
    with pytest.raises(TypeError, match=r"padding_idx has to be a whole number, but got 0\.1"):
        EmbeddingDropout(7, 2, 0.1)
