"""sources: ranges, weights, chains and mixtures, what is refused."""
import collections
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from crlsr.core import generator
from crlsr.degradation.operations import GaussianBlur
from crlsr.degradation.sources import (
    Aniso, Clean, Disk, Gaussian8, Iso, Mixture, Motion, Sensor, SourceChain, choose, integer, source_name, source_reach, uniform,
)


def draws(source, count, scale=4):
    return [source(scale, generator("draw", i)) for i in range(count)]


@given(st.floats(-5, 5), st.floats(0, 9), st.integers(0, 999))
def test_uniform_stays_in_its_range(low, width, key):
    assert low <= uniform(generator(key), low, low + width) <= low + width


def test_integers_are_uniform():
    counts = np.bincount([integer(generator("i", i), 6) for i in range(3000)], minlength=6)
    assert len(counts) == 6 and ((counts - 500) ** 2 / 500).sum() < 20.5  # chi-square, 5 degrees of freedom, once in a thousand


@pytest.mark.parametrize("source", [Clean(), Iso(), Gaussian8(), Aniso(), Iso(2.0), Aniso(1.0, 2.0, 3.0)])
def test_simple_sources_draw_three_numbers(source):
    rng, other = generator(1), generator(1)
    source(4, rng)
    torch.rand(3, dtype=torch.float64, generator=other)
    assert uniform(rng, 0, 1) == uniform(other, 0, 1)


@pytest.mark.parametrize("make, message", [
    (lambda: Iso(-1.0), "iso σ: got -1"), (lambda: Iso(math.nan), "iso σ: got nan"), (lambda: Iso("a"), "Iso.sigma"), (lambda: Aniso(1.0, 2.0), "aniso: got .*or none"),
    (lambda: Disk(-1.0), "disk radius: got -1"), (lambda: Motion(5.0), "motion: got"),
    (lambda: SourceChain(Iso(), noise=(5.0, 1.0)), "noise: got 5..1"), (lambda: SourceChain(Iso(), jpeg=(0, 10)), "jpeg: got 0..10"), (lambda: SourceChain(Iso(), jpeg=(10.5, 11)), "jpeg"),
    (lambda: Mixture((), ()), "expected a number > 0 for each part"), (lambda: Mixture((Iso(), Clean()), (1.0,)), "for 2 parts"),
    (lambda: Mixture((Iso(), Clean()), (1.0, 0.0)), "expected a number > 0"), (lambda: Mixture((Iso(), Clean()), (1.0, math.inf)), "expected a number > 0")])
def test_sources_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5))
def test_mixture_follows_its_weights(weights):
    parts = tuple(Iso(float(i)) for i in range(len(weights)))
    mixture, count = Mixture(parts, tuple(weights)), 400
    drawn = collections.Counter(mixture.pick(generator("pick", i)) for i in range(count))
    for part, weight in zip(parts, weights):
        p = weight / sum(weights)
        assert abs(drawn[part] - count * p) < 5 * math.sqrt(count * p * (1 - p)) + 1


def test_choose_settles_mixtures_within_chains_and_mixtures():
    inner = Mixture((Iso(1.0),), (1.0,), "inner")
    nested = SourceChain(Mixture((inner,), (2.0,)), noise=(3.0, 3.0))
    assert choose(nested, generator(0)) == SourceChain(Iso(1.0), noise=(3.0, 3.0)) and source_name(choose(nested, generator(0))) == "iso:1+noise:3"
    assert nested(4, generator(0))[0] == GaussianBlur(1.0, 1.0)
    plain = SourceChain(Iso())
    assert choose(plain, generator(0)) is plain


class Wide:
    reach = 32


def test_reach_is_that_of_the_widest_part():
    assert source_reach(Iso()) == 10 and source_reach(lambda scale, rng: []) == 10
    assert source_reach(SourceChain(Mixture((Clean(), Wide()), (1.0, 1.0)))) == Wide.reach > 10


def test_sensor_noise_has_the_published_law():
    noise = [steps[1] for steps in draws(Sensor(), 600)]
    shot, read = np.log([n.shot for n in noise]), 2 * np.log([n.read for n in noise])  # their read noise is a variance
    assert math.log(1e-4) <= shot.min() and shot.max() <= math.log(0.012)
    residual = read - (2.18 * shot + 1.2)
    assert abs(residual.mean()) < 4 * 0.26 / math.sqrt(600) and abs(residual.std() - 0.26) < 4 * 0.26 / math.sqrt(1200)
