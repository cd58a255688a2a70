"""Noise in Triton: words of Philox from a seed and a place, and what is made of them, in one pass over memory.

A call of Philox gives 128 bits. A keep mask takes eight parts of 16 bits of them, Gaussian factors take four words. So
that no part has to change places between threads, elements are numbered in stripes: part k of call c of a group of
``STRIPE`` calls is element c of the k-th of the stripes that follow one another there. Nothing else decides what an
element gets, neither how many there are, nor the sizes of blocks.
"""

import triton
import triton.language as tl

__all__ = ["STRIPE", "factors", "gaussian", "masked", "masked_rows", "masks"]

STRIPE = 128  # calls; one for each thread, so that nothing is exchanged between them


@triton.jit
def _words(seed, calls, kind):
    """128 bits for every call; ``kind`` makes another stream of the same seed."""
    calls = calls.to(tl.int64)
    low, high = (calls & 0xFFFFFFFF).to(tl.uint32), (calls >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, low * 0 + kind, low * 0)


@triton.jit
def _part(words, k: tl.constexpr):
    return (words[k // 2] >> (16 * (k % 2))) & 0xFFFF


@triton.jit
def _keeps(part, more, cut, rest):
    return (part > cut) | ((part == cut) & ((more >> 1) >= rest))


@triton.jit
def _eight_masks(seed, calls, cut, rest):
    """Dropped with probability (cut + rest / 2**31) / 2**16: 16 bits decide, and where they tie, 31 more."""
    words = _words(seed, calls, 0)
    a, b, c, d = _part(words, 0), _part(words, 1), _part(words, 2), _part(words, 3)
    e, f, g, h = _part(words, 4), _part(words, 5), _part(words, 6), _part(words, 7)
    a_, b_, c_, d_, e_, f_, g_, h_ = a > cut, b > cut, c > cut, d > cut, e > cut, f > cut, g > cut, h > cut
    ties = (a == cut) | (b == cut) | (c == cut) | (d == cut) | (e == cut) | (f == cut) | (g == cut) | (h == cut)
    if tl.max(ties.to(tl.int32), 0) > 0:
        more = _words(seed, calls, 1)
        a_, b_ = _keeps(a, more[0], cut, rest), _keeps(b, more[1], cut, rest)
        c_, d_ = _keeps(c, more[2], cut, rest), _keeps(d, more[3], cut, rest)
        more = _words(seed, calls, 2)
        e_, f_ = _keeps(e, more[0], cut, rest), _keeps(f, more[1], cut, rest)
        g_, h_ = _keeps(g, more[2], cut, rest), _keeps(h, more[3], cut, rest)
    return a_, b_, c_, d_, e_, f_, g_, h_


@triton.jit(do_not_specialize=["cut", "rest"])
def masks(output, seed, size, cut, rest, STRIPE: tl.constexpr):
    """Keep masks, 0 or 1."""
    group = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, STRIPE)
    keeps = _eight_masks(tl.load(seed), group * STRIPE + lane, cut, rest)
    for k in tl.static_range(8):
        place = (group * 8 + k) * STRIPE + lane
        tl.store(output + place, keeps[k].to(tl.int8), mask=place < size)


@triton.jit(do_not_specialize=["cut", "rest"])
def masked(input, output, seed, size, scale, cut, rest, STRIPE: tl.constexpr):
    """The input times ``scale`` where it is kept, else 0."""
    group = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, STRIPE)
    keeps = _eight_masks(tl.load(seed), group * STRIPE + lane, cut, rest)
    for k in tl.static_range(8):
        place = (group * 8 + k) * STRIPE + lane
        x = tl.load(input + place, mask=place < size).to(tl.float32)
        tl.store(output + place, tl.where(keeps[k], x * scale, 0.0).to(output.dtype.element_ty), mask=place < size)


@triton.jit(do_not_specialize=["cut", "rest"])
def masked_rows(input, output, seed, length, scale, cut, rest, BLOCK: tl.constexpr, STRIPE: tl.constexpr):
    """The same with one draw for a whole row; a dropped one is not read."""
    row = tl.program_id(0).to(tl.int64)
    part = row // STRIPE % 8
    calls = row // (8 * STRIPE) * STRIPE + row % STRIPE + tl.zeros([1], tl.int64)
    keeps = _eight_masks(tl.load(seed), calls, cut, rest)
    kept = tl.zeros([1], tl.int32)
    for k in tl.static_range(8):
        kept += tl.where(part == k, keeps[k].to(tl.int32), 0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < length
    x = tl.load(input + row * length + column, mask=inside & (kept > 0), other=0.0).to(tl.float32)
    tl.store(output + row * length + column, (x * scale).to(output.dtype.element_ty), mask=inside)


@triton.jit
def _logarithm(x):
    """Of a normal number in (0, 1]: to a rounding or two next to 1 as well, where fast instructions are not."""
    bits = x.to(tl.int32, bitcast=True)
    above = ((bits & 0x7FFFFF) > 0x3504F3).to(tl.int32)  # a fraction above sqrt(2) belongs to the next exponent
    exponent = ((bits >> 23) - 127 + above).to(tl.float32)
    f = ((bits & 0x7FFFFF) | ((127 - above) << 23)).to(tl.float32, bitcast=True) - 1.0
    s = f / (2.0 + f)  # log(1 + f) is 2 artanh(s), |s| < 0.172
    z = s * s
    series = 1.0 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9))))
    return 2.0 * s * series + exponent * 0.6931471805599453


@triton.jit
def _cosine_and_sine(word):
    """Of the angle 2 pi word / 2**32: the sines and cosines of an eighth of a turn, turned by quarters."""
    quarter = (word + 0x20000000) >> 30
    angle = (word - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    z = angle * angle
    sine = angle * (1 - z * (1 / 6 - z * (1 / 120 - z * (1 / 5040 - z * (1 / 362880)))))
    cosine = 1 - z * (1 / 2 - z * (1 / 24 - z * (1 / 720 - z * (1 / 40320 - z * (1 / 3628800)))))
    odd = (quarter & 1) == 1
    x, y = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where((quarter == 1) | (quarter == 2), -x, x), tl.where((quarter & 2) == 2, -y, y)


@triton.jit
def _two_normals(of_radius, of_angle):
    """By Box and Muller."""
    # all words to (0, 1], exact where it matters: in the tail
    uniform = (of_radius.to(tl.float32) + 1.0) * 2.3283064365386963e-10
    radius = tl.sqrt(tl.maximum(-2.0 * _logarithm(uniform), 0.0))
    cosine, sine = _cosine_and_sine(of_angle)
    return radius * cosine, radius * sine


@triton.jit
def _four_normals(seed, calls):
    words = _words(seed, calls, 0)
    a, b = _two_normals(words[0], words[1])
    c, d = _two_normals(words[2], words[3])
    return a, b, c, d


@triton.jit
def factors(output, seed, size, mean, deviation, STRIPE: tl.constexpr):
    """Normally distributed factors."""
    group = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, STRIPE)
    normals = _four_normals(tl.load(seed), group * STRIPE + lane)
    for k in tl.static_range(4):
        place = (group * 4 + k) * STRIPE + lane
        tl.store(output + place, (mean + deviation * normals[k]).to(output.dtype.element_ty), mask=place < size)


@triton.jit
def gaussian(input, output, seed, size, mean, deviation, STRIPE: tl.constexpr):
    """The input times such factors, which are rounded to its type first, as if they had been stored."""
    group = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, STRIPE)
    normals = _four_normals(tl.load(seed), group * STRIPE + lane)
    for k in tl.static_range(4):
        place = (group * 4 + k) * STRIPE + lane
        x = tl.load(input + place, mask=place < size).to(tl.float32)
        factor = (mean + deviation * normals[k]).to(output.dtype.element_ty).to(tl.float32)
        tl.store(output + place, (x * factor).to(output.dtype.element_ty), mask=place < size)
