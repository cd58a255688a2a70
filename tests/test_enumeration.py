"""The exact oracle is judged by sums small enough to write out."""

import math

import pytest
import torch

from dropoutlib.enumeration import distribution, masks


def test_masks_are_all_masks_in_counting_order():
    assert masks(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    every = masks(2, 3)
    assert every.shape == (64, 2, 3)
    assert every.dtype == torch.float64
    assert len({tuple(mask.flatten().tolist()) for mask in every}) == 64


def test_too_many_masks_are_refused_with_their_number():
    with pytest.raises(ValueError, match=r"\(3, 7\) has 21 elements.*at most 20"):
        masks(3, 7)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_probabilities_count_the_dropped_elements(p):
    law = distribution(lambda keep: keep.sum(), (5,), p)
    binomial = [math.comb(5, kept) * (1 - p) ** kept * p ** (5 - kept) for kept in range(6)]
    for kept, probability in enumerate(binomial):
        assert law.probabilities[law.outputs == kept].sum().item() == pytest.approx(probability, abs=1e-15)


def test_each_element_may_have_its_own_probability():
    law = distribution(lambda keep: keep, (3,), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(law.mean(), torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64), atol=1e-7, rtol=0)


def test_moments_agree_with_the_sums_written_out():
    weight = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    law = distribution(lambda keep: weight @ keep, (2,), 0.25)
    torch.testing.assert_close(law.mean(), 0.75 * weight.sum(dim=1))
    covariance = 0.75 * 0.25 * weight @ weight.T
    torch.testing.assert_close(law.covariance(), covariance)
    torch.testing.assert_close(law.variance(), covariance.diagonal())
    torch.testing.assert_close(law.expectation(torch.square), covariance.diagonal() + law.mean() ** 2)


def test_outputs_may_be_of_any_shape():
    law = distribution(lambda keep: keep.mT @ keep, (2, 2), 0.5)
    assert law.mean().shape == law.variance().shape == (2, 2)
    assert law.covariance().shape == (4, 4)


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_a_probability_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        distribution(lambda keep: keep, (2,), p)


def test_outputs_of_any_type_are_judged_in_float64():
    law = distribution(lambda keep: keep.sum() > 1, (2,), 0.5)
    assert law.mean().item() == 0.25
    assert law.covariance().tolist() == [[0.1875]]
    assert law.expectation(lambda output: output > 0.5).item() == 0.25


def test_a_mask_that_never_comes_does_not_count():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    law = distribution(lambda keep: (keep * x).sum() / keep.sum(), (2,), torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(law.mean(), torch.tensor(1.25, dtype=torch.float64))     # 0/0 has the probability 0
    assert law.probabilities.tolist() == [0.5, 0.5]


def test_complex_outputs_keep_their_imaginary_part():
    x = torch.tensor([1j, 2.0], dtype=torch.complex128)
    law = distribution(lambda keep: 2 * x * keep, (2,), 0.5)
    torch.testing.assert_close(law.mean(), x)
    torch.testing.assert_close(law.variance(), torch.tensor([1.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(law.covariance().real.diagonal(), law.variance())


def test_a_function_may_return_a_number():
    assert distribution(lambda keep: float(keep.sum()), (2,), 0.5).mean() == 1


@pytest.mark.parametrize(("call", "words"), [(lambda: masks((2,)), "shape"), (lambda: masks(0), "shape"),
                                             (lambda: distribution(abs, 3, 0.5), "shape.*tuple.*3")])
def test_what_is_no_shape_is_refused(call, words):
    with pytest.raises(TypeError, match=words):
        call()


def test_outputs_are_copied():
    buffer = torch.empty(2, dtype=torch.float64)
    law = distribution(lambda keep: torch.mul(keep, 2.0, out=buffer), (2,), 0.5)
    assert law.outputs.tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]


def test_a_pair_is_no_output():
    with pytest.raises(TypeError, match=r"tensor or a number.*tuple"):
        distribution(lambda keep: (keep, keep), (2,), 0.5)


def test_outputs_of_one_shape_alone_have_a_law():
    with pytest.raises(ValueError, match=r"one shape, but returned \(1,\) and \(2,\)"):
        distribution(lambda keep: keep[: 1 + int(keep[0])], (2,), 0.5)


def test_rates_that_do_not_broadcast_to_the_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"p has to be broadcastable to the shape \(2,\) of the masks"):
        distribution(lambda keep: keep, (2,), torch.rand(4, 2))


def test_a_truth_value_is_no_number():
    with pytest.raises(TypeError, match="shape has to be sizes"):
        masks(True)
    for p in (True, torch.tensor(True)):
        with pytest.raises(TypeError, match="dropout probability has to be a real number, but got"):
            distribution(lambda keep: keep, (1,), p)
