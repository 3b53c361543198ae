"""profiles: settings, the two configs of a profile, schedules and the average of the weights."""
import copy
import json
import math
import typing

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from crlsr.core import digest, field_types, generator
from crlsr.data import Pairing
from crlsr.model import FLAT, ModelConfig
from crlsr.training import PROFILES, TrainConfig, profile
from crlsr.training.profiles import ema_decay_at, learning_rate_at, update_average, weights_at_step

# settings

def test_the_settings_that_others_build_on_exist_and_have_one_owner():
    names = [set(FLAT), set(field_types(TrainConfig))]
    assert not names[0] & names[1]
    promised = ("seed steps batch_size patch_size learning_rate checkpoint_every num_feat num_block scale input preset weight_bc weight_srnce "
                "weight_rec temperature num_vectors bc_negatives srnce_negatives srnce_anchor share_heads").split()
    assert set(promised) <= names[0] | names[1]


def test_pairing_takes_what_the_sampler_takes():
    assert typing.get_args(typing.get_type_hints(TrainConfig)["pairing"]) == typing.get_args(Pairing)


@pytest.mark.parametrize("name, model, train", [
    ("cpu", {"scale": 4, "num_feat": 32, "num_block": 6}, {"patch_size": 24, "batch_size": 8, "steps": 2500}),
    ("gpu", {"num_feat": 64, "num_block": 16}, {"patch_size": 48, "batch_size": 32, "steps": 100_000}),
    ("paper", {"num_feat": 64, "num_block": 32}, {"patch_size": 48, "batch_size": 32, "steps": 500_000}),
    ("smoke", {"scale": 4}, {"data": "embedded:train", "val_data": None}),
    ("bundled", {"scale": 4, "weight_bc": 4e-4, "weight_srnce": 0.012, "stop_gradient": "none", "guidance_end": 0.6},
     {"preset": "multimodal | spatial", "data": "BSDS500:train", "val_data": "BSDS500:validation", "threads": 1}),
])
def test_profiles(name, model, train):
    of_model, of_training = profile(name)
    for values, expected in ((of_model.flat(), model), (of_training.to_dict(), train)):
        assert {key: values[key] for key in expected} == expected
    assert set(PROFILES) == {"smoke", "cpu", "bundled", "gpu", "paper"}


@given(st.fixed_dictionaries({}, optional={
    "steps": st.integers(1, 10**6), "learning_rate": st.floats(1e-6, 1), "num_feat": st.integers(1, 99), "share_heads": st.booleans(),
    "preset": st.sampled_from(["iso", "aniso+noise:0..25"]), "schedule": st.just("cosine"), "val_data": st.none()}))
def test_texts_and_dictionaries_change_a_profile_alike(changes):
    texts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]
    assert profile("gpu", changes) == profile("gpu", texts) == profile("gpu", iter(texts))
    for config in profile("gpu", changes):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("changes, message", [
    ({"stepps": 1}, r"unknown setting 'stepps'; did you mean 'steps'\?"),
    (["num_feats=3"], "did you mean 'num_feat'"),
    ({"qqqq": 1}, "known: scale, input"),
    ({"steps": "many"}, "TrainConfig.steps"),
    ({"steps": 0}, "steps: got 0, expected at least 1"),
    ({"learning_rate": 0.0}, "learning_rate: got 0.0"),
    ({"learning_rate": math.nan}, "learning_rate: got nan"),
    ({"clip_norm": math.nan}, "clip_norm"),
    ({"ema": 1.0}, "ema: got 1.0"),
    ({"betas": [0.9, 1.0]}, r"betas\[1\]: got 1.0"),
    ({"schedule": "cosine2"}, "did you mean 'cosine'"),
    ({"schedule": "onecycle"}, "schedule: got 'onecycle', expected one of 'cosine'"),
    (["steps"], "expected key=value"),
])
def test_wrong_settings_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        profile("smoke", changes)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        profile("smoek", changes)


# schedules

@given(steps=st.integers(2, 60), share=st.floats(0.05, 0.5), peak=st.floats(1e-5, 1))
def test_the_schedule_is_that_of_torch(steps, share, peak):
    warmup = max(1, int(share * steps))
    config = TrainConfig(steps=steps, learning_rate=peak, warmup_steps=warmup)

    def run(make, count):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
        scheduler, sizes = make(optimizer), []
        for _ in range(count):
            sizes.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return sizes

    rise = [peak * (t + 1) / warmup for t in range(warmup)]
    fall = run(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps - warmup), steps - warmup)
    assert [learning_rate_at(t, config) for t in range(steps)] == pytest.approx(rise + fall, rel=1e-6, abs=1e-12)


@given(steps=st.integers(1, 60), warmup=st.integers(0, 200))
def test_step_sizes_are_positive_and_reach_the_peak_once(steps, warmup):
    config = TrainConfig(steps=steps, warmup_steps=warmup, learning_rate=1.0)
    sizes = [learning_rate_at(t, config) for t in range(steps)]
    assert all(0 < size <= 1 for size in sizes)
    top = sizes.index(max(sizes))
    assert sizes[:top] == sorted(sizes[:top]) and sizes[top:] == sorted(sizes[top:], reverse=True)
    assert max(sizes) == pytest.approx(1.0)


@given(decay=st.floats(0, 0.9999), steps=st.integers(1, 40))
def test_the_average_is_a_weighted_mean_of_all_weights(decay, steps):
    model = torch.nn.BatchNorm1d(2).double()  # has buffers, an integer one among them
    average = copy.deepcopy(model)
    path, share = [model.weight.detach().clone()], [1.0]
    for t in range(steps):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, dtype=torch.float64, generator=generator("walk", t)))
            model.num_batches_tracked += 1
        d = ema_decay_at(t, decay)
        assert 0 <= d <= decay
        update_average(average, model, d)
        path.append(model.weight.detach().clone())
        share = [s * d for s in share] + [1 - d]
    assert sum(share) == pytest.approx(1)
    assert torch.allclose(average.weight, sum(s * w for s, w in zip(share, path)), atol=1e-12)
    assert average.num_batches_tracked == steps


def test_later_fields_at_their_defaults_leave_a_digest_as_it_was():
    later = {"extractor_steps": 3, "guidance_every": 2, "keep_at": (0.5,)}
    first = {name: value for name, value in TrainConfig().to_dict().items() if name not in (*later, "method")}
    assert TrainConfig().digest() == digest(first)
    assert len({TrainConfig().digest(), *(TrainConfig(**{name: value}).digest() for name, value in later.items())}) == 4
    paired = TrainConfig(pairing="same_degradation")
    assert paired.replace(method="estimating").digest() != paired.digest()
    for wrong in ((0.0,), (1.5,), (0.5, float("nan"))):
        with pytest.raises(ValueError, match="keep_at: got"):
            TrainConfig(keep_at=wrong)


@given(every=st.integers(1, 7), alone=st.integers(0, 20), step=st.integers(0, 49))
def test_what_counts_at_a_step(every, alone, step):
    model = ModelConfig.from_flat(freeze_extractor=True, weight_decode=0.3, weight_gradient=0.5, share_aware=-0.1, guidance_warmup=0.5)
    config, full = TrainConfig(steps=50, guidance_every=every, extractor_steps=alone), model.weights_at(step / 50)
    found = weights_at_step(model, config, step)
    guided, first = step % every == 0, step < alone
    assert found.pixel == 1 and (found.bc, found.decode, found.gradient, found.head, found.aware) == ((full.bc, full.decode, full.gradient, full.head, full.aware) if guided else (0,) * 5)
    assert found.rec == (full.rec if first or guided and not alone else 0) and found.srnce == (full.srnce if guided and not first else 0)
