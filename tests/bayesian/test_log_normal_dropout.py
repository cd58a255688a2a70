"""What is log-normal dropout's own; the contract of every layer is in tests/contract."""

from __future__ import annotations

import itertools
import math
from functools import cache

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor, nn

from dropoutlib import LogNormalDropout, functional, kl_divergence
from dropoutlib.bayesian.log_normal_dropout import TruncatedLogNormal
from dropoutlib.experiments import measured, unit_pruning
from dropoutlib.experiments.paired import read_scores

LOW, HIGH = -20, 0
MU = (-20.0, -19.5, -12.0, -5.0, -1.0, -0.25, 0.0, 2**-10, 0.25, 1.0, 5.0)
LOG_S = (-20.0, -12.0, -5.0, -2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0)
POINTS = list(itertools.product(MU, LOG_S))  # all of them float32 numbers, too


@pytest.fixture(autouse=True)
def precise():
    """Differences that float64 loses leave 50 digits of these; the smallest one is 36 digits below its terms."""
    with mp.workdps(120):
        yield


def pdf(x):
    return mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


def cdf(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def between(low, high):
    """The normal law between two numbers, from the tail in which it is a difference of small ones."""
    return cdf(high) - cdf(low) if low < 0 else cdf(-low) - cdf(-high)


def exact(mu, log_s):
    """Divergence, mean and signal-to-noise ratio, as the closed forms of the paper give them."""
    s = mp.exp(log_s)
    low, high = (LOW - mu) / s, (HIGH - mu) / s
    share = between(low, high)
    kl = mp.log((HIGH - LOW) / (mp.sqrt(2 * mp.pi * mp.e) * s)) - mp.log(share)
    kl -= (low * pdf(low) - high * pdf(high)) / (2 * share)
    mean, square = (mp.exp(k * mu + (k * s) ** 2 / 2) * between(low - k * s, high - k * s) / share for k in (1, 2))
    return kl, mean, mean / mp.sqrt(square - mean**2)


@cache
def with_slopes(mu: float, log_s: float):
    """The three numbers, and the derivatives by mu and log s of each; of the ratio those of its logarithm."""
    with mp.workdps(120):
        step, point = mpf(10) ** -40, (mpf(mu), mpf(log_s))
        slopes = []
        for axis in range(2):
            ahead, behind = (exact(*(x + sign * step * (i == axis) for i, x in enumerate(point))) for sign in (1, -1))
            slopes.append([(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)])
        values = exact(*point)
        for slope in slopes:
            slope[2] /= values[2]
        return values, slopes


def parameters(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    mu, log_s = (torch.tensor(column, dtype=dtype, requires_grad=True) for column in zip(*POINTS, strict=True))
    return mu, log_s


def largest(errors) -> tuple[float, object]:
    return max((float(abs(error)), point) for error, point in zip(errors, POINTS, strict=True))


def test_the_closed_forms_are_the_integrals() -> None:
    """Of the density itself, by quadrature: the judge of the judge."""
    with mp.workdps(30):
        for mu, log_s in ((-6.0, 1.0), (-1.0, -0.25), (2.0, 0.5), (0.0, 3.0)):
            s = mp.exp(log_s)
            places = mp.linspace(LOW, HIGH, 41)

            def integral(function, mu=mu, s=s, places=places):
                return mp.quad(lambda y: function(y) * mp.exp(-((y - mu) / s) ** 2 / 2), places)

            total = integral(lambda y: 1)
            mean, square = (integral(lambda y, k=k: mp.exp(k * y)) / total for k in (1, 2))
            kl = integral(lambda y, mu=mu, s=s: -((y - mu) / s) ** 2 / 2) / total - mp.log(total) + mp.log(HIGH - LOW)
            for value, expected in zip(exact(mpf(mu), mpf(log_s)), (kl, mean, mean / mp.sqrt(square - mean**2)),
                                       strict=True):
                assert abs(value / expected - 1) < mpf(10) ** -20


def test_divergence_mean_and_ratio_hold_for_all_parameters() -> None:
    mu, log_s = parameters()
    law = TruncatedLogNormal(mu, log_s)
    for k, value in enumerate((law.kl(), law.mean, law.snr)):
        expected = [with_slopes(*point)[0][k] for point in POINTS]
        errors = [(mpf(one) - other) / (1 if k == 0 else other)
                  for one, other in zip(value.tolist(), expected, strict=True)]
        assert largest(errors) < (2e-14, None)
    torch.testing.assert_close(law.variance, (law.mean / law.snr) ** 2, rtol=1e-13, atol=0)
    assert (law.kl() > -1e-14).all()


def test_their_gradients_hold_for_all_parameters() -> None:
    mu, log_s = parameters()
    law = TruncatedLogNormal(mu, log_s)
    for k, value in enumerate((law.kl(), law.mean, law.snr.log())):
        for axis, gradient in enumerate(torch.autograd.grad(value.sum(), (mu, log_s), retain_graph=True)):
            expected = [with_slopes(*point)[1][axis][k] for point in POINTS]
            # A step of mu is one of mu/s: where s is small, rounding counts in those.
            scales = [max(1, abs(other)) + (mp.exp(-point[1]) if axis == 0 and k != 1 else 0)
                      for other, point in zip(expected, POINTS, strict=True)]
            errors = [(mpf(one) - other) / scale
                      for one, other, scale in zip(gradient.tolist(), expected, scales, strict=True)]
            assert largest(errors) < (1e-12, None), (k, axis)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_types_are_rounded(dtype: torch.dtype) -> None:
    """The layer computes in float64 whatever the type of its parameters, and rounds what it gives."""
    mu, log_s = (parameter.detach() for parameter in parameters(dtype))
    layer, precise = LogNormalDropout(len(mu), dtype=dtype), LogNormalDropout(len(mu), dtype=torch.float64)
    for one in (layer, precise):
        with torch.no_grad():
            one.mu.copy_(mu)
            one.log_s.copy_(log_s)
    assert layer.snr.dtype == layer.kl().dtype == torch.float32
    torch.testing.assert_close(layer.snr, precise.snr.float(), rtol=2e-7, atol=0)
    torch.testing.assert_close(layer.kl(), precise.kl().float(), rtol=2e-7, atol=0)
    wide = [torch.autograd.grad(one.kl() + one.snr.log().sum(), (one.mu, one.log_s)) for one in (layer, precise)]
    for gradient, expected in zip(*wide, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    y = layer(torch.ones(4, len(mu), dtype=dtype))
    y.float().sum().backward()
    assert y.isfinite().all() and layer.mu.grad.isfinite().all() and layer.log_s.grad.isfinite().all()


def quantile(mu: float, log_s: float, share: float, near: float):
    """The logarithm below which a share of the law lies, with its derivatives by mu and log s, by Newton's steps."""
    s = mp.exp(log_s)
    low, high = (LOW - mpf(mu)) / s, (HIGH - mpf(mu)) / s
    u = mpf(share)
    z = (mpf(near) - mu) / s if high > -3 else -mp.sqrt(high**2 - 2 * mp.log(u))
    below, above = ((1 - u) * cdf(sign * low) + u * cdf(sign * high) for sign in (1, -1))
    sign, goal = (1, below) if below < above else (-1, above)
    for _ in range(30):
        step = sign * mp.log(cdf(sign * z) / goal) * cdf(sign * z) / pdf(z)
        z -= step
        if abs(step) < mpf(10) ** -90 * (1 + abs(z)):
            break
    else:
        raise AssertionError(f"no quantile at {mu}, {log_s}, {share}")
    by_mu = 1 - ((1 - u) * pdf(low) + u * pdf(high)) / pdf(z)
    by_log_s = s * (z - ((1 - u) * low * pdf(low) + u * high * pdf(high)) / pdf(z))
    return mu + s * z, by_mu, by_log_s


@pytest.mark.parametrize("share", [2**-53, 2**-24, 0.25, 0.5, 1 - 2**-24, 1 - 2**-53])
def test_draws_and_their_gradients_hold_in_both_tails(share: float) -> None:
    for dtype in (torch.float64, torch.float32):
        uniform = torch.tensor(share, dtype=dtype)
        if dtype == torch.float32 and not 2**-25 < share <= 1 - 2**-24:
            continue  # no draw of this type
        mu, log_s = parameters(dtype)
        logarithm = TruncatedLogNormal(mu, log_s).factor(uniform).log()
        gradients = torch.autograd.grad(logarithm.sum(), (mu, log_s))
        expected = [quantile(*point, share, near) for point, near in zip(POINTS, logarithm.tolist(), strict=True)]
        bound = 4e-7 if dtype == torch.float32 else 1e-12
        for k, value in enumerate((logarithm, *gradients)):
            errors = [(mpf(one) - other[k]) / max(1, abs(other[k]))
                      for one, other in zip(value.tolist(), expected, strict=True)]
            assert largest(errors) < (1e-12 if k == 0 else bound, None), k


def test_the_mean_where_the_code_of_the_authors_gives_one() -> None:
    """mu = 5 and s = 1: all of the law lies in the tail that their code clips."""
    law = TruncatedLogNormal(torch.tensor(5.0), torch.tensor(0.0))
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert law.factor(uniform).mean().item() == pytest.approx(law.mean.item(), abs=1e-6)
    assert law.mean.item() == pytest.approx(0.8422, abs=5e-5)


def test_the_ends_of_the_uniform_law_are_finite() -> None:
    for dtype in (torch.float64, torch.float32):
        for share in (0.0, 1.0):
            mu, log_s = parameters(dtype)
            factor = TruncatedLogNormal(mu, log_s).factor(torch.tensor(share, dtype=dtype))
            gradients = torch.autograd.grad(factor.sum(), (mu, log_s))
            assert all(part.isfinite().all() for part in (factor, *gradients))
            assert (factor >= math.exp(LOW) * (1 - 1e-15)).all() and (factor <= 1).all()


def test_limits() -> None:
    """Infinite noise: the prior itself. Far from the bounds: the log-normal law."""
    law = TruncatedLogNormal(torch.tensor(-10.0), torch.tensor(5.0))
    assert law.kl() < 1e-6
    one = -math.expm1(LOW)
    uniform = one / math.sqrt((HIGH - LOW) / 2 * -math.expm1(2 * LOW) - one**2)
    assert law.snr.item() == pytest.approx(uniform, rel=1e-3)
    assert uniform == pytest.approx(1 / 3, abs=1e-8)
    s = torch.tensor([0.1, math.sqrt(math.log(2)), 1.0], dtype=torch.float64)
    law = TruncatedLogNormal(torch.full_like(s, -10.0), s.log())
    torch.testing.assert_close(law.snr, s.square().expm1().rsqrt(), rtol=1e-6, atol=0)
    assert law.snr[1].item() == pytest.approx(1, rel=1e-8)


def layer_with(mu, log_s, **options) -> LogNormalDropout:
    layer = LogNormalDropout(len(mu), dtype=torch.float64, **options)
    with torch.no_grad():
        layer.mu.copy_(torch.tensor(mu))
        layer.log_s.copy_(torch.tensor(log_s))
    return layer


def test_evaluation_takes_the_mean_and_drops_what_is_mostly_noise() -> None:
    layer = layer_with([-1.0, -1.0, -3.0], [-2.0, 0.0, 1.0]).eval()
    assert layer.kept.tolist() == [True, True, False] and (layer.snr < 1).tolist() == [False, False, True]
    x = torch.tensor([[1.0, 2.0, math.inf], [-1.0, 4.0, math.nan]], dtype=torch.float64)
    means = [float(exact(mpf(-1), mpf(log_s))[1]) for log_s in (-2, 0)]
    expected = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 4.0, 0.0]]) * torch.tensor([*means, 1.0])
    torch.testing.assert_close(layer(x), expected.double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(layer.scale, torch.tensor([*means, 0.0], dtype=torch.float64))
    layer.threshold = 2.0
    assert layer.kept.tolist() == [True, False, False] and layer(x)[0, 1] == 0
    assert "threshold=2.0, sharing='sample', kept=1" in repr(layer)
    layer.threshold = 0.0
    assert layer.kept.all() and torch.equal(layer(x[:1, :2].repeat(1, 2)[:, :3]), layer.mean(x[:1, [0, 1, 0]]))


def test_a_parameter_that_is_nan_is_seen() -> None:
    layer = LogNormalDropout(2).eval()
    nn.init.constant_(layer.log_s, math.nan)
    assert layer(torch.ones(1, 2)).isnan().all() and layer.kept.all() and layer.scale.isnan().all()


def test_parameters_beyond_their_range_count_as_the_bound_and_can_come_back() -> None:
    inside, outside = layer_with([5.0, -20.0], [5.0, -20.0]), layer_with([7.0, -30.0], [8.0, -25.0])
    x = torch.ones(3, 2, dtype=torch.float64)
    noise = inside.draw(x)
    for value in (lambda one: one(x, noise=noise), lambda one: one.kl(), lambda one: one.snr):
        torch.testing.assert_close(value(outside), value(inside))
    for one in (inside, outside):
        (one(x, noise=noise).sum() + one.kl()).backward()
    assert torch.equal(inside.mu.grad, outside.mu.grad) and torch.equal(inside.log_s.grad, outside.log_s.grad)
    assert (outside.log_s.grad != 0).all()


@pytest.mark.parametrize(("sharing", "size"), [("sample", (5, 3, 1, 1)), ("batch", (1, 3, 1, 1))])
def test_what_shares_a_draw(sharing, size, device: str) -> None:
    layer = LogNormalDropout(3, sharing=sharing, device=device)
    nn.init.constant_(layer.log_s, 0.0)
    x = torch.ones(5, 3, 4, 4, device=device)
    noise = layer.draw(x)
    assert noise.shape == size and len(noise.unique()) == noise.numel()
    y = layer(x, noise=noise)
    assert (y == y[..., :1, :1]).all() and len(y[..., 0, 0].unique()) == noise.numel()
    assert layer(x[..., 0, 0]).shape == (5, 3) and layer(x[..., 0]).shape == (5, 3, 4)


def test_the_mean_and_the_variance_of_draws() -> None:
    torch.manual_seed(0)
    layer, x = layer_with([-1.0, 5.0, -12.0], [0.0, 1.0, 0.5]), torch.full((200_000, 3), 2.0, dtype=torch.float64)
    with torch.no_grad():
        y, mean, variance = layer(x), layer.mean(x)[0], layer.variance(x)[0]
        distance = (y.mean(0) - mean) / (variance / len(x)).sqrt()
        assert (distance.abs() < 6.5).all()
        squares = (y - mean).square()
        assert (((squares.mean(0) - variance) / (squares.var(0) / len(x)).sqrt()).abs() < 6.5).all()


def test_noise_is_learned() -> None:
    torch.manual_seed(0)
    mu, log_s = (torch.tensor(values, dtype=torch.float64, requires_grad=True)
                 for values in ([-2.0, 0.5, 4.0], [0.0, -0.5, 0.2]))
    x, uniform = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)

    def function(mu: Tensor, log_s: Tensor) -> Tensor:
        return functional.log_normal_dropout(x, mu, log_s, noise=uniform)

    assert torch.autograd.gradcheck(function, (mu, log_s), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (mu, log_s))
    for moment in (lambda law: law.kl(), lambda law: law.mean, lambda law: law.snr, lambda law: law.variance):
        assert torch.autograd.gradcheck(lambda mu, log_s, f=moment: f(TruncatedLogNormal(mu, log_s)), (mu, log_s),
                                        check_forward_ad=True)
    layer = LogNormalDropout(3)
    (layer(torch.randn(4, 3)).square().mean() + kl_divergence(layer) / 100).backward()
    assert (layer.mu.grad != 0).all() and (layer.log_s.grad < 0).all()  # the divergence asks for more noise


def test_it_starts_with_next_to_no_noise_and_resets() -> None:
    layer = LogNormalDropout(4)
    assert list(layer.state_dict()) == ["mu", "log_s"]
    assert (layer.mu == 0).all() and (layer.log_s == -5).all() and (layer.snr > 200).all()
    nn.init.constant_(layer.log_s, 3.0)
    layer.reset_parameters()
    assert (layer.log_s == -5).all()


class TestDoneWrong:
    """Formulas that the module does not take, so that the tests above can tell them apart."""

    def test_the_printed_forms_fail_where_ours_hold(self) -> None:
        mu, log_s = (parameter.detach() for parameter in parameters())
        s = log_s.exp()
        low, high = (LOW - mu) / s, (HIGH - mu) / s
        share = torch.special.ndtr(high) - torch.special.ndtr(low)
        mean = torch.exp(mu + s**2 / 2) / share * (torch.special.ndtr(s - low) - torch.special.ndtr(s - high))
        assert mean.isnan().sum() > 10

    def test_a_clipped_distribution_function_is_another_law(self) -> None:
        uniform = torch.rand(1000, dtype=torch.float64)
        clipped = (5 + torch.special.ndtri(torch.special.ndtr(torch.tensor(-5.0)) * uniform.clamp(min=1e-5)).clamp(
            min=torch.special.ndtri(torch.tensor(1e-5)))).clamp(max=0).exp()
        assert (clipped == 1).all()


BAD = {
    "no unit": (lambda: LogNormalDropout(0), ValueError, "num_features.*0"),
    "half a unit": (lambda: LogNormalDropout(2.5), TypeError, "num_features.*2.5"),
    "threshold": (lambda: LogNormalDropout(2, threshold=-1), ValueError, "threshold.*-1"),
    "threshold nan": (lambda: LogNormalDropout(2, threshold=math.nan), ValueError, "threshold.*nan"),
    "threshold no number": (lambda: LogNormalDropout(2, threshold="a"), TypeError, "threshold.*'a'"),
    "sharing": (lambda: LogNormalDropout(2, sharing="space"), ValueError, "sharing.*'space'"),
    "no batch": (lambda: LogNormalDropout(2)(torch.ones(2)), RuntimeError, r"\(N, 2, \.\.\.\).*\(2,\)"),
    "other units": (lambda: LogNormalDropout(2)(torch.ones(2, 3)), RuntimeError, r"\(N, 2, \.\.\.\).*\(2, 3\)"),
    "in evaluation": (lambda: LogNormalDropout(2).eval()(torch.ones(2, 3)), RuntimeError, r"\(2, 3\)"),
    "mean": (lambda: LogNormalDropout(2).mean(torch.ones(2, 3)), RuntimeError, r"\(2, 3\)"),
    "mu no tensor": (lambda: called(0.0, torch.zeros(2)), TypeError, "mu.*0.0"),
    "log_s no tensor": (lambda: called(torch.zeros(2), 0.0), TypeError, "log_s.*0.0"),
    "two shapes": (lambda: called(torch.zeros(2), torch.zeros(3)), RuntimeError, r"\(2,\) and \(3,\)"),
    "a number of units": (lambda: called(torch.zeros(()), torch.zeros(())), RuntimeError, r"\(\) and \(\)"),
    "noise": (lambda: called(torch.zeros(2), torch.zeros(2), noise=torch.tensor([0.5, 1.5])), ValueError, "0 and 1"),
    "noise of a batch": (lambda: called(torch.zeros(2), torch.zeros(2), sharing="batch", noise=torch.rand(3, 2)),
                         ValueError, r"\(1, 2\).*\(3, 2\)"),
}


def called(mu, log_s, **options):
    return functional.log_normal_dropout(torch.ones(3, 2), mu, log_s, **options)


@pytest.mark.parametrize(("call", "kind", "words"), BAD.values(), ids=BAD)
def test_bad_input(call, kind, words) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_mpmath_is_precise_enough() -> None:
    """The hardest point with more digits: fifty are the same."""
    with mpmath.workdps(240):
        more = exact(mpf(5), mpf(-20))
    for value, better in zip(exact(mpf(5), mpf(-20)), more, strict=True):
        assert abs(value / better - 1) < mpf(10) ** -50


def test_the_table_of_the_chapter_is_that_of_the_command() -> None:
    text = measured("unit_pruning")
    assert text.startswith("# python -m dropoutlib.experiments.unit_pruning --seeds 5\n# torch ")
    assert text.partition("; ")[2].splitlines()[:2] == [unit_pruning._ABOUT[0], f"# {unit_pruning._ABOUT[1]}"]
    scores = read_scores(text)
    assert list(scores) == [key for noise in ("none", "log-normal")
                            for key in unit_pruning._keys(unit_pruning.Run(noise, 0))]
    assert all(len(by_seed) == 5 for by_seed in scores.values())


def test_the_command_runs(tmp_path, monkeypatch) -> None:
    for name, value in (("_BEFORE", 2), ("_STEPS", 2), ("_LABELS", 100), ("_OF_NOISE", 8.0)):
        monkeypatch.setattr(unit_pruning, name, value)
    output = tmp_path / "table.txt"
    assert unit_pruning.main(["--seeds", "1", "--output", str(output)]) == 0
    scores = read_scores(output.read_text())
    before = {noise: scores[unit_pruning._key(noise, "error before")][0] for noise in ("none", "log-normal")}
    assert before["none"] == before["log-normal"] > 0
    assert scores[unit_pruning._key("log-normal", "units, input")][0] < 64
    assert scores[unit_pruning._key("log-normal", "error, all units")][0] > 0
