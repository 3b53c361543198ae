"""Pairs of items in a batch that share hr or degradation, and their labels."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crlsr.core import generator
from crlsr.data import ImagePool, PatchSampler
from crlsr.degradation import Degradation
from crlsr.model import CRLSR
from crlsr.training import fit, profile

POOL = ImagePool("embedded:train")
NOISY = "multimodal+noise:2..20"


def sampler(pairing, preset="aniso+noise:5..25", batch_size=6, seed=0, patch=8):
    return PatchSampler(POOL, Degradation.parse(preset, scale=4), patch, batch_size, seed, pairing)


def without_seeds(params):
    return [{key: value for key, value in step.to_dict().items() if key != "seed"} for step in params.steps]


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(0, 100), st.sampled_from(["iso+noise:5", "aniso+noise:0..25", "motion+noise:10", "sensor", "multimodal"]))
def test_same_degradation_shares_everything_but_the_noise(step, seed, preset):
    made = sampler("same_degradation", preset, seed=seed)
    batch = made.batch(step)
    assert batch.degradation.tolist() == [0, 0, 1, 1, 2, 2] and batch.image.tolist() == list(range(6))
    for i in range(0, 6, 2):
        a, b = batch.params[i : i + 2]
        assert without_seeds(a) == without_seeds(b) and a.source == b.source
        assert torch.equal(a.steps[0].kernel(), b.steps[0].kernel()) if hasattr(a.steps[0], "kernel") else a.steps[0] == b.steps[0]
        assert a.noise_seed != b.noise_seed or a.noise_level == 0
        assert not torch.equal(batch.hr[i], batch.hr[i + 1])
    assert without_seeds(batch.params[0]) != without_seeds(batch.params[2]) or preset.startswith("iso:")


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(0, 100))
def test_two_degradations_share_the_hr_and_nothing_else(step, seed):
    batch = sampler("two_degradations", seed=seed).batch(step)
    assert batch.image.tolist() == [0, 0, 1, 1, 2, 2] and batch.degradation.tolist() == list(range(6))
    assert all(torch.equal(batch.hr[i], batch.hr[i + 1]) for i in (0, 2, 4))
    assert len({p.sigma1 for p in batch.params}) == 6 and len({p.noise_seed for p in batch.params}) == 6
    assert len(torch.unique(batch.hr.flatten(1), dim=0)) == 3 and not torch.equal(batch.lr[0], batch.lr[1])


@pytest.mark.parametrize("pairing", ["none", "same_degradation", "two_degradations"])
def test_labels_and_draws_do_not_depend_on_who_makes_which_part(pairing):
    made = sampler(pairing, NOISY)
    whole = made.batch(3)
    for indices in ([0, 1, 2], [3, 4, 5], [5, 0], [4]):
        part = made.batch(3, indices)
        for field in ("lr", "hr", "image", "degradation"):
            assert torch.equal(getattr(part, field), getattr(whole, field)[indices])
        assert part.params == [whole.params[i] for i in indices]


def test_a_pair_is_drawn_like_any_item():
    "Shared draws cover the photographs and the parameters as single ones do."
    two = [sampler("two_degradations", "iso", 2, seed).batch(seed) for seed in range(200)]
    one = [sampler("none", "iso", 2, seed).batch(seed) for seed in range(200)]
    means = [[float(batch.hr[0].mean()) for batch in batches] for batches in (two, one)]
    sigmas = [[batch.params[0].sigma1 for batch in batches] for batches in (two, one)]
    for a, b in (means, sigmas):
        a, b = torch.tensor(a), torch.tensor(b)
        assert abs(a.mean() - b.mean()) < 4 * (a.var() / 200 + b.var() / 200).sqrt()


@pytest.mark.parametrize(("pairing", "batch", "message"), [
    ("two_degradation", 4, "did you mean 'two_degradations'"), ("same_degradation", 5, "expected an even number"), ("none", 0, "at least 1")])
def test_impossible_batches_are_refused(pairing, batch, message):
    with pytest.raises(ValueError, match=message):
        sampler(pairing, batch_size=batch)


def test_the_setting_reaches_training_and_is_checked(tmp_path):
    with pytest.raises(ValueError, match="pairs of images in each of 4 piece"):
        profile("smoke", {"pairing": "two_degradations", "batch_size": 4, "accumulate": 4})
    tiny = {"steps": 2, "batch_size": 2, "patch_size": 8, "num_feat": 4, "num_block": 2, "log_every": 1}
    for pairing in ("same_degradation", "two_degradations"):
        model, train = profile("smoke", {**tiny, "pairing": pairing, "bc_negatives": pairing})
        assert fit(model, train, tmp_path / pairing, progress=False).finished
    model, train = profile("smoke", {**tiny, "bc_negatives": "same_degradation"})
    with pytest.raises(ValueError, match="no two share a label"):
        fit(model, train, tmp_path / "none", progress=False)


def test_distinct_labels_change_no_loss():
    "What is trained without pairs is what it was before there were labels."
    from crlsr.model import Labels

    for negatives in ("positions", "both_sides", "batch"):
        model = CRLSR(profile("smoke", {"num_feat": 4, "num_block": 2, "bc_negatives": negatives})[0])
        batch = sampler("none", batch_size=3).batch(0)
        losses = [model.objective(batch.lr, batch.hr, generator("x"), labels=labels)[0].total for labels in (None, Labels(batch.image, batch.degradation))]
        assert torch.equal(*losses)
