"""Stochastic rounding: unbiased, repeatable, and without effect where nothing is to be rounded."""

import pytest
import torch

from hasten.engine.rounding import random_bits, round_stochastically
from hasten.hashing import words


def rounded(x, key, start=0):
    index = torch.arange(start, start + x.numel())
    return round_stochastically(x, random_bits(*words(key), index))


def test_splitmix64_gives_the_published_sequence():
    # The first outputs of splitmix64 seeded with 1234567, from its reference implementation.
    gamma, seed = 0x9E3779B97F4A7C15, 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = [words((seed + i * gamma) % 2**64) for i in range(3)]
    assert [low | high << 32 for low, high in found] == published


def test_mean_over_keys_is_the_value():
    x = torch.tensor([1.0 + 2**-9, -3.14159, 1e-30, 65504.3, 0.1])
    keys = 4000
    draws = torch.stack([rounded(x, key) for key in range(keys)]).double()
    below = draws.amin(0)
    gap = draws.amax(0) - below
    fraction = (x.double() - below) / gap
    sigma = gap * (fraction * (1 - fraction) / keys).sqrt()
    assert ((draws.mean(0) - x).abs() <= 5 * sigma).all()


def test_mean_over_entries_is_the_value():
    x = torch.full((100_000,), 1.0 + 0.3 * 2**-7)
    share = (rounded(x, 11).float() > 1.0).double().mean().item()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 100_000) ** 0.5


def test_neighbouring_bits_are_uncorrelated():
    bits = random_bits(*words(5), torch.arange(200_000)).double() / 2**16 - 0.5
    other = random_bits(*words(6), torch.arange(200_000)).double() / 2**16 - 0.5
    for left, right in ((bits[1:], bits[:-1]), (bits, other)):
        correlation = (left * right).mean() * 12
        assert abs(correlation) < 5 / 200_000**0.5


def test_representable_values_and_specials_stay():
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    result = rounded(every.float(), 3)
    number = ~torch.isnan(every)
    assert torch.equal(result[number].view(torch.int16), every[number].view(torch.int16))
    assert torch.isnan(result[~number]).all()


def test_steps_below_half_an_ulp_move_on_average():
    param = torch.ones(4096, dtype=torch.bfloat16)
    for key in range(100):
        param = rounded(param.float() - 2**-13, key)
    assert param.double().mean().item() == pytest.approx(1 - 100 * 2**-13, rel=1e-3)


def test_same_key_same_bits_whatever_the_tiling():
    x = torch.randn(1000)
    whole = rounded(x, 2**63 + 5)
    pieces = torch.cat([rounded(x[:300], 2**63 + 5), rounded(x[300:], 2**63 + 5, start=300)])
    assert torch.equal(whole, pieces)
    assert not torch.equal(whole, rounded(x, 2**63 + 6))


def test_index_beyond_32_bits_has_its_own_bits():
    low = random_bits(*words(1), torch.arange(1000))
    high = random_bits(*words(1), torch.arange(1000) + 2**32)
    assert (low == high).double().mean() < 0.01
    assert low.min() >= 0
    assert low.max() < 2**16
