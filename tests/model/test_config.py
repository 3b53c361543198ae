"""config: what goes together, what is refused, and the course of the weights."""
import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crlsr.model import ModelConfig
from crlsr.model.config import FLAT, TermWeights, first_stage, guidance_share, remover_frozen
from crlsr.model.decoupling import parse_negatives

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
        ModelConfig.from_flat(bc_negatives=wrong)
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
        ModelConfig.from_flat(**wrong)
    assert "\n" not in str(error.value)


def test_the_word_none_from_a_command_line():
    config = ModelConfig().override(["srnce_negatives=none", "stop_gradient=None", "guidance_window=none"])
    assert (config.refinement.negatives, config.decoupling.stop_gradient, config.vectors.guidance_window) == ("none", "none", None)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_records_of_older_runs_mean_what_they_meant():
    old = {"scale": 2, "input": "lr", "num_feat": 16, "num_block": 4, "decoder_blocks": None, "training_blocks": None, "num_embed": 32, "share_heads": False, "weight_bc": 0.1, "weight_srnce": 0.0,
           "weight_rec": 0.0, "temperature": 0.1, "num_vectors": 64, "bc_negatives": "positions", "srnce_negatives": "content", "srnce_anchor": "hr", "detach_negatives": True}
    config = ModelConfig.from_dict(old)
    assert {name: config.flat()[name] for name in old} == old
    assert config.weights_at(0.0) == config.weights_at(1.0) == TermWeights(1.0, 0.1, 0.0, 0.0) and config.vectors.guidance_window is None and not config.vectors.shared_encoder


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
    config = ModelConfig.from_flat(weight_bc=2.0, weight_srnce=4.0, weight_rec=8.0, guidance_warmup=0.2, guidance_end=0.8)
    assert config.weights_at(0.1) == TermWeights(1.0, 1.0, 2.0, 8.0)
    assert config.weights_at(0.5) == pytest.approx(TermWeights(1.0, 1.0, 2.0, 8.0))
    assert config.weights_at(0.8) == config.weights_at(1.0) == TermWeights(1.0, 0.0, 0.0, 0.0)


def test_two_stages():
    config = ModelConfig.from_flat(weight_bc=2.0, weight_srnce=4.0, weight_rec=8.0, training="staged", stage_share=0.5)
    assert config.weights_at(0.49) == TermWeights(0.0, 2.0, 0.0, 8.0) and first_stage(config, 0.49) and not remover_frozen(config, 0.49)
    assert config.weights_at(0.5) == TermWeights(1.0, 2.0, 4.0, 8.0) and not first_stage(config, 0.5) and not remover_frozen(config, 0.5)
    frozen = config.replace(freeze_remover=True)
    assert frozen.weights_at(0.49) == config.weights_at(0.49) and not remover_frozen(frozen, 0.49)
    assert frozen.weights_at(0.5) == TermWeights(1.0, 0.0, 4.0, 8.0) and remover_frozen(frozen, 1.0)


@given(st.floats(0, 1))
def test_the_control_is_plain_whatever_else_is_set(progress):
    config = ModelConfig.from_flat(training="staged", freeze_remover=True, guidance_warmup=0.3, guidance_end=0.6, **OFF)
    assert config.weights_at(progress) == TermWeights(1.0, 0.0, 0.0, 0.0) and not remover_frozen(config, progress) and not first_stage(config, progress)


# --- groups and flat names ---

OLD = """scale input num_feat num_block decoder_blocks training_blocks num_embed share_heads shared_encoder weight_bc weight_srnce weight_rec temperature
learn_temperature num_vectors guidance_window bc_negatives bc_vectors bc_layer stop_gradient ema_keys queue_size hard_beta far_distance dissimilar_threshold
debias_prior srnce_negatives srnce_anchor srnce_space detach_negatives detach_anchor freeze_extractor margin blur_sigmas past_momentum guidance_warmup
guidance_end training stage_share freeze_remover""".split()  # the fields of version 0.1, in their order


def leaves(config):
    return [(group.name, field.name) for group in dataclasses.fields(config) for field in dataclasses.fields(getattr(config, group.name))]


def test_flat_names_and_fields_are_one_to_one_and_the_old_ones_come_first():
    assert sorted(FLAT.values()) == sorted(leaves(ModelConfig())) and len(set(FLAT.values())) == len(FLAT)
    assert list(FLAT)[:40] == OLD and list(ModelConfig().flat()) == list(FLAT)


@given(st.sampled_from(sorted(FLAT)), st.data())
def test_every_field_is_set_under_either_name(name, data):
    group, field = FLAT[name]
    values = {"temperature": 0.5, "guidance_end": 0.75, "ema_keys": 0.5, "debias_prior": 0.25, "stage_share": 0.25, "training": "staged", "freeze_remover": False,
              "dissimilar_threshold": 0.25, "blur_sigmas": (1.0, 2.0), "margin": 1.0, "vector": "oracle", "past_momentum": 0.5, "guidance_warmup": 0.25, "bc_vectors": "images",
              "decoder_base": "features", "share_bc": 0.25, "share_srnce": 0.25, "share_aware": -0.25, "share_gradient": 0.25}
    default = ModelConfig().flat()[name]
    value = values.get(name, {bool: not default, int: 2, float: 0.25, type(None): 2}.get(type(default)))
    if value is None:
        value = {"input": "upsampled", "bc_negatives": "far+hard", "stop_gradient": "low", "srnce_negatives": "none", "srnce_anchor": "both", "srnce_space": "shared"}[name]
    text = json.dumps(value) if not isinstance(value, str) or data.draw(st.booleans()) else value
    config = ModelConfig().override([f"{data.draw(st.sampled_from([name, f'{group}.{field}']))}={text}"])
    assert config == ModelConfig.from_flat(**{name: value}) == ModelConfig().replace(**{group: getattr(ModelConfig(), group).replace(**{field: value})})
    assert config.flat() == ModelConfig().flat() | {name: value} and getattr(getattr(config, group), field) == value
    assert (config.digest() == ModelConfig().digest()) == (value == default)


@pytest.mark.parametrize("changes, word", [
    ({"num_vectors": 1}, "num_vectors, guidance_window"), ({"guidance_window": 1}, "room for 2 positions"), ({"network": 5, "scale": 2}, "network"), ({"decoupling": {"weight": "x"}}, "weight_bc: got 'x'"),
    ({"share_heads": "yes"}, "^share_heads: got 'yes'"), ({"decoupling": {"wieght": 1}}, "did you mean 'weight'"), ({"stage_share": -1.0}, "at least 0 and below 1"),
])
def test_what_does_not_go_together_is_named_as_it_is_set(changes, word):
    with pytest.raises(ValueError, match=word) as error:
        ModelConfig.from_dict(changes)
    assert "\n" not in str(error.value)


def test_one_position_is_enough_where_none_are_compared():
    for changes in ({"weight_bc": 0.0}, {"bc_vectors": "images"}, {"input": "upsampled", "guidance_window": 1, "num_vectors": 4}):
        assert ModelConfig.from_dict({"num_vectors": 1, **changes}).vectors.num_vectors in (1, 4)


def test_a_group_is_no_option():
    with pytest.raises(ValueError, match="decoupling: is a group of options, expected one of them, such as decoupling.weight"):
        ModelConfig().override(["decoupling=0"])


@pytest.mark.parametrize("wrong, word", [("weight_bcc=1", "did you mean 'weight_bc'"), ("decoupling.wieght=1", "did you mean 'decoupling.weight'"), ("netwrk=1", "did you mean 'network'")])
def test_an_unknown_name_offers_the_nearest_of_both_kinds(wrong, word):
    with pytest.raises(ValueError, match=word) as error:
        ModelConfig().override([wrong])
    assert "\n" not in str(error.value)


def test_a_digest_does_not_count_later_fields_at_their_default(monkeypatch):
    from crlsr.model import config as module

    config = ModelConfig.from_flat(weight_bc=0.5)
    monkeypatch.setattr(module, "_ORIGINAL", tuple(name for name in OLD if name != "margin"))
    assert config.digest() != ModelConfig().digest()
    without, other = config.digest(), config.replace(margin=0.5).digest()
    monkeypatch.undo()
    assert without != config.digest() and other not in (without, config.digest())  # "margin" counts where it is not at its default


@given(st.fixed_dictionaries({}, optional={
    "weight_bc": st.floats(0, 1), "num_feat": st.integers(1, 64), "bc_negatives": st.sampled_from(["far+hard", "batch"]), "stop_gradient": st.sampled_from(["none", "low"]),
    "blur_sigmas": st.lists(st.floats(0.1, 9), min_size=1, max_size=3).map(tuple), "training_blocks": st.none() | st.integers(0, 9)}))
def test_a_printed_config_makes_itself_again_and_shows_only_what_differs(changes):
    config, default = ModelConfig.from_flat(**changes), ModelConfig().flat()
    assert eval(repr(config), {"ModelConfig": ModelConfig}) == config
    assert all((f"{name}=" in repr(config)) == (value != default[name]) for name, value in config.flat().items() if name in changes)
    assert repr(ModelConfig()) == "ModelConfig()" and len(repr(config)) < 200
