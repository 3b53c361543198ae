"""model_config: what goes together, what is refused, and the course of the weights."""
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crlsr.model import ModelConfig
from crlsr.model.config import TermWeights, guidance_share, parse_negatives

OFF = {"weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}
POOLS = ["positions", "both_sides", "batch", "queue", "same_degradation"]


@given(pool=st.sampled_from(POOLS + [None]), filters=st.sets(st.sampled_from(["far", "dissimilar"])), weighting=st.sampled_from([None, "hard", "transport"]),
       form=st.sampled_from([None, "debiased", "decoupled"]), random=st.randoms(use_true_random=False))
def test_parts_come_in_the_order_in_which_they_apply(pool, filters, weighting, form, random):
    names = [name for name in (pool, *filters, weighting, form) if name]
    random.shuffle(names)
    if names:
        expected = [pool or "positions", *(name for name in ("far", "dissimilar") if name in filters), *(name for name in (weighting, form) if name)]
        assert list(parse_negatives("+".join(names))) == expected


@pytest.mark.parametrize("alone", ["simsiam", "vicreg", "barlow", "l1"])
def test_losses_without_negatives_stand_alone(alone):
    assert parse_negatives(alone) == (alone,)
    for other in ("far", "positions", "vicreg+l1"):
        with pytest.raises(ValueError, match="stand alone"):
            parse_negatives(f"{alone}+{other}" if other != "vicreg+l1" else other)


@pytest.mark.parametrize("wrong, word", [
    ("", "expected positions"), ("fare", "did you mean 'far'"), ("batch+queue", "at most one pool"), ("hard+transport", "at most one weighting"), ("debiased+decoupled", "at most one form"),
    ("far+far", "no name twice"), ("positions+", "expected positions"), ("two_degradations+hard", "several"), ("two_degradations+dissimilar", "several"), ("far + hard", "did you mean"),
])
def test_combinations_that_are_refused(wrong, word):
    with pytest.raises(ValueError, match=word) as error:
        ModelConfig(bc_negatives=wrong)
    assert "\n" not in str(error.value) and "bc_negatives" in str(error.value)


@pytest.mark.parametrize("wrong, word", [
    ({"bc_negatives": "queue"}, "ema_keys"), ({"freeze_remover": True}, "freeze_remover"), ({"bc_vectors": "images", "bc_negatives": "far"}, "bc_negatives"),
    ({"bc_vectors": "channels", "ema_keys": 0.9}, "ema_keys"), ({"bc_negatives": "vicreg", "ema_keys": 0.9}, "ema_keys"), ({"bc_vectors": "channels", "bc_negatives": "simsiam"}, "bc_vectors"),
    ({"guidance_end": 0.0}, "guidance_end"), ({"guidance_end": 0.3, "guidance_warmup": 0.3}, "guidance_end"), ({"guidance_end": 1.1}, "guidance_end"), ({"guidance_warmup": 1.5}, "guidance_warmup"),
    ({"guidance_warmup": -0.1}, "guidance_warmup"), ({"bc_layer": 5}, "bc_layer"), ({"bc_layer": -1}, "bc_layer"), ({"guidance_window": 0}, "guidance_window"), ({"queue_size": 0}, "queue_size"),
    ({"ema_keys": 1.0}, "ema_keys"), ({"debias_prior": 0.0}, "debias_prior"), ({"debias_prior": 1.0}, "debias_prior"), ({"dissimilar_threshold": 1.5}, "dissimilar_threshold"),
    ({"hard_beta": -1.0}, "hard_beta"), ({"hard_beta": math.inf}, "hard_beta"), ({"margin": 0.0}, "margin"), ({"margin": 2.5}, "margin"), ({"blur_sigmas": ()}, "blur_sigmas"), ({"blur_sigmas": (0.0,)}, "blur_sigmas"),
    ({"far_distance": -1}, "far_distance"), ({"stage_share": 1.0}, "stage_share"), ({"past_momentum": -0.1}, "past_momentum"), ({"learn_temperature": True, "temperature": 0.001}, "temperature"),
    ({"srnce_negatives": "contents"}, "srnce_negatives"), ({"stop_gradient": "both"}, "stop_gradient"), ({"training": "alternating"}, "training"), ({"srnce_space": "one"}, "srnce_space"),
])
def test_fields_out_of_range_or_contradicting_each_other(wrong, word):
    with pytest.raises(ValueError, match=word) as error:
        ModelConfig(**wrong)
    assert "\n" not in str(error.value)


def test_the_word_none_from_a_command_line():
    config = ModelConfig().override(["srnce_negatives=none", "stop_gradient=None", "guidance_window=none"])
    assert (config.srnce_negatives, config.stop_gradient, config.guidance_window) == ("none", "none", None)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_configs_of_older_files_mean_what_they_meant():
    old = {"scale": 2, "input": "lr", "num_feat": 16, "num_block": 4, "decoder_blocks": None, "training_blocks": None, "num_embed": 32, "share_heads": False, "weight_bc": 0.1, "weight_srnce": 0.0,
           "weight_rec": 0.0, "temperature": 0.1, "num_vectors": 64, "bc_negatives": "positions", "srnce_negatives": "content", "srnce_anchor": "hr", "detach_negatives": True}
    config = ModelConfig.from_dict(old)
    assert {name: config.to_dict()[name] for name in old} == old
    assert config.weights_at(0.0) == config.weights_at(1.0) == TermWeights(1.0, 0.1, 0.0, 0.0) and config.guidance_window is None and not config.shared_encoder


# --- the course of training ---

@given(progress=st.floats(0, 1), warmup=st.floats(0, 0.5), length=st.one_of(st.none(), st.floats(0.1, 0.5)))
def test_the_factor_against_its_formula(progress, warmup, length):
    end = None if length is None else warmup + length
    share = guidance_share(progress, warmup, end)
    assert 0 <= share <= 1
    if progress < warmup:
        assert share == progress / warmup
    elif end is None:
        assert share == 1
    elif progress >= end:
        assert share == 0
    else:
        assert share == pytest.approx(0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (end - warmup)))


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_is_a_share(progress):
    with pytest.raises(ValueError, match="progress"):
        ModelConfig().weights_at(progress)


def test_warm_up_and_end_act_on_the_contrastive_losses():
    config = ModelConfig(weight_bc=2.0, weight_srnce=4.0, weight_rec=8.0, guidance_warmup=0.2, guidance_end=0.8)
    assert config.weights_at(0.1) == TermWeights(1.0, 1.0, 2.0, 8.0)
    assert config.weights_at(0.5) == pytest.approx(TermWeights(1.0, 1.0, 2.0, 8.0))
    assert config.weights_at(0.8) == config.weights_at(1.0) == TermWeights(1.0, 0.0, 0.0, 0.0)


def test_two_stages():
    config = ModelConfig(weight_bc=2.0, weight_srnce=4.0, weight_rec=8.0, training="staged", stage_share=0.5)
    assert config.weights_at(0.49) == TermWeights(0.0, 2.0, 0.0, 8.0) and config.first_stage(0.49) and not config.frozen(0.49)
    assert config.weights_at(0.5) == TermWeights(1.0, 2.0, 4.0, 8.0) and not config.first_stage(0.5) and not config.frozen(0.5)
    frozen = config.replace(freeze_remover=True)
    assert frozen.weights_at(0.49) == config.weights_at(0.49) and not frozen.frozen(0.49)
    assert frozen.weights_at(0.5) == TermWeights(1.0, 0.0, 4.0, 8.0) and frozen.frozen(1.0)


@given(st.floats(0, 1))
def test_the_control_is_plain_whatever_else_is_set(progress):
    config = ModelConfig(training="staged", freeze_remover=True, guidance_warmup=0.3, guidance_end=0.6, **OFF)
    assert config.weights_at(progress) == TermWeights(1.0, 0.0, 0.0, 0.0) and not config.frozen(progress) and not config.first_stage(progress)
