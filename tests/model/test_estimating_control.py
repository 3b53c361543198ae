"""The control that estimates, against loops, lists and closed forms."""
import copy
import math
import weakref
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from crlsr.core import field_types, generator, seed_everything
from crlsr.data import ImagePool, PatchSampler
from crlsr.degradation import Degradation
from crlsr.evaluation import evaluate
from crlsr.evaluation.grid import evaluate_grid
from crlsr.evaluation.tables import picture_grid
from crlsr.inference import load_model, upscale
from crlsr.inference.upscaling import bytes_per_pixel
from crlsr.model import CRLSR, METHODS, EstimatingConfig, EstimatingSR, Labels, ModelConfig, Told, load_model_file, new_model, save_model, told
from crlsr.model.estimating_control import (
    DegradationContrast, DegradationEncoder, EstimatingRestorer, ModulatedRestorer, Modulation, matched_network, true_figures,
)
from crlsr.networks import NetworkConfig, Restorer
from crlsr.networks.blocks import num_parameters
from crlsr.training import TrainConfig

SMALL = dict(num_feat=8, num_block=3, vector_feat=8, encoder_feat=4, num_keys=16)
PAIRS = Labels(torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2]))


def config(**changes) -> ModelConfig:
    return ModelConfig.from_flat(**{**SMALL, **changes})


def awake(model: EstimatingSR) -> EstimatingSR:
    "With weights that are drawn as zeros replaced, so that everything that can act does."
    with torch.no_grad():
        for part in [*model.restorer.backbone.modulations, model.restorer.backbone.plain.decoder.tail]:
            for weight in part.parameters():
                weight.normal_(std=0.1)
    return model


def build(seed: int = 0, **changes) -> EstimatingSR:
    seed_everything(seed)
    return awake(EstimatingSR(config(**changes)))


def batch(step: int = 0, size: int = 6, preset: str = "iso+noise:0..25", scale: int = 4, side: int = 12):
    sampler = PatchSampler(ImagePool("embedded:train"), Degradation.parse(preset, scale=scale), side, size, 0, "same_degradation")
    found = sampler.batch(step)
    return found, Labels(found.image, found.degradation, found.params)


# --- modulation ---

@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_modulation_by_loops(images, channels, height, width, everywhere):
    torch.manual_seed(images + 10 * channels)
    layer = Modulation(channels, 3).double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    x = torch.randn(images, channels, height, width, dtype=torch.float64)
    code = torch.randn(images, 3, *((height, width) if everywhere else (1, 1)), dtype=torch.float64)
    expected = torch.zeros_like(x)
    for b in range(images):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    v = code[b, :, i, j] if everywhere else code[b, :, 0, 0]
                    kernel = [float(layer.kernel.weight[9 * c + tap, :, 0, 0] @ v + layer.kernel.bias[9 * c + tap]) for tap in range(9)]
                    kernel[4] += 2 / (1 + math.exp(-float(layer.attention.weight[c, :, 0, 0] @ v + layer.attention.bias[c])))
                    for tap, k in enumerate(kernel):
                        y, z = i + tap // 3 - 1, j + tap % 3 - 1
                        if 0 <= y < height and 0 <= z < width:
                            expected[b, c, i, j] += k * x[b, c, y, z]
    torch.testing.assert_close(layer(x, code), expected)


def test_the_backbone_starts_as_the_plain_restorer_of_the_same_seed():
    network = NetworkConfig(num_feat=8, num_block=3, scale=3)
    made = []
    for make in (lambda: Restorer(network), lambda: ModulatedRestorer(network, 4)):
        seed_everything(3)
        made.append(make())
    plain, tuned = made
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), tuned.plain.parameters(), strict=True))
    for restorer in (plain, tuned.plain):
        torch.nn.init.constant_(restorer.decoder.tail.conv.weight, 0.02)
    lr = torch.rand(2, 3, 9, 7)
    torch.testing.assert_close(tuned(lr, torch.randn(2, 4, 1, 1)), plain(lr))


@pytest.mark.parametrize("grid", ["lr", "upsampled"])
def test_a_pixel_sees_no_further_than_the_halo(grid):
    model = build(input=grid, scale=2, num_block=2)
    side, at = 2 * model.halo + 9, model.halo + 4
    lr = torch.rand(1, 3, side, side, requires_grad=True)
    vector = model.estimate(lr.detach())
    model(lr, vector)[0, :, 2 * at : 2 * at + 2, 2 * at : 2 * at + 2].sum().backward()
    seen = lr.grad.abs().sum((0, 1)).nonzero()
    assert (seen - at).abs().max() <= model.halo and (seen - at).abs().max() >= model.halo - 1


# --- contrast ---

def contrast(keys: int = 6, momentum: float = 0.5, size: int = 4):
    seed_everything(0)
    settings_ = EstimatingConfig(vector_feat=size, encoder_feat=2, num_keys=keys, key_momentum=momentum)
    encoder = DegradationEncoder(2, size)
    return DegradationContrast(settings_, encoder), encoder


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([2, 4, 6, 8]), min_size=1, max_size=6), st.sampled_from([2, 4, 10]))
def test_the_queue_is_a_list_that_drops_its_oldest(sizes, keys):
    branch, encoder = contrast(keys)
    size, rings, count = keys // 2, ([None] * (keys // 2), [None] * (keys // 2)), 0
    for step, many in enumerate(sizes):
        lr = torch.rand(many, 3, 8, 8, generator=generator("queue", step))
        branch(encoder(lr), lr)
        (new,) = branch.new_keys
        branch.after_step(encoder)
        for ring, keys_of_side in zip(rings, (new[0::2], new[1::2])):
            for age, key in enumerate(list(keys_of_side)[-size:]):  # of more than fit the last ones stay
                ring[(count + age) % size] = key
        count += min(size, many // 2)
    for side, ring in zip((branch.queue.low, branch.queue.high), rings):
        assert all(torch.equal(stored, key) for stored, key in zip(side, ring) if key is not None)
        assert sum(key is not None for key in ring) == min(size, count) and not side[count:].any()


def test_the_loss_by_three_loops():
    branch, encoder = contrast(keys=8)
    lr = torch.rand(6, 3, 8, 8)
    for _ in range(2):
        branch(encoder(lr), lr)
        branch.after_step(encoder)
    vector = encoder(lr)
    loss = branch(vector, lr)
    with torch.no_grad():
        queries, keys = branch.head(vector.flatten(1)).double(), branch.slow["head"](branch.slow["encoder"](lr).flatten(1)).double()
        queries, keys = (F.normalize(x - sum(x) / 6, dim=1) for x in (queries, keys))
    total = 0.0
    for i in range(6):
        partner = i + 1 if i % 2 == 0 else i - 1
        scores = [sum(float(queries[i, d] * keys[partner, d]) for d in range(4)) / 0.07]
        for side in (branch.queue.low, branch.queue.high):
            scores += [sum(float(queries[i, d] * key[d]) for d in range(4)) / 0.07 for key in side]
        assert len(scores) == 9
        total += math.log(sum(math.exp(s - scores[0]) for s in scores)) / 6
    assert abs(loss.item() - total) < 1e-4
    loss.backward()
    assert encoder.layers[0].weight.grad.any() and branch.head.layers[0].weight.grad.any()
    assert all(weight.grad is None for weight in branch.slow.parameters())


def test_the_first_batch_meets_an_empty_queue():
    branch, encoder = contrast()
    loss = branch(encoder(lr := torch.rand(4, 3, 8, 8)), lr)
    assert loss == 0
    loss.backward()
    assert not encoder.layers[0].weight.grad.any()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_the_key_encoder_by_its_closed_form(momentum):
    branch, encoder = contrast(momentum=momentum)
    start = [weight.detach().clone() for weight in encoder.parameters()]
    for _ in range(5):
        with torch.no_grad():
            for weight in encoder.parameters():
                weight.add_(1)
        branch.after_step(encoder)
    # after t steps the copy lags behind t by the sum of m^1 .. m^t
    lag = sum(momentum**k for k in range(1, 6))
    for slow, first in zip(branch.slow["encoder"].parameters(), start, strict=True):
        torch.testing.assert_close(slow, first + 5 - lag)


# --- the model and its arms ---

def test_methods_are_those_of_the_training_config():
    assert list(METHODS) == list(get_args(field_types(TrainConfig)["method"]))
    assert type(new_model("estimating", config())) is EstimatingSR and type(new_model("crlsr", config())) is CRLSR
    with pytest.raises(ValueError, match="^method: got 'dasr', expected one of crlsr, estimating$"):
        new_model("dasr", config())


def test_the_terms_and_their_sum():
    model, (data, labels) = build(), batch()
    model.objective(data.lr, data.hr, labels=labels)
    model.after_step()
    losses, sr = model.objective(data.lr, data.hr, progress=0.5, labels=labels)
    assert losses._fields == model.terms
    torch.testing.assert_close(sr, model(data.lr))
    torch.testing.assert_close(losses.pixel, (sr - data.hr).abs().mean())
    torch.testing.assert_close(losses.total, losses.pixel + 0.004 * losses.contrast)
    losses.total.backward()
    assert all(any(w.grad is not None and w.grad.any() for w in part.parameters()) for part in model.networks().values())


def test_the_warm_up_moves_the_encoder_alone():
    model, (data, labels) = build(encoder_warmup=0.3), batch()
    for _ in range(2):
        model.zero_grad()
        losses, _ = model.objective(data.lr, data.hr, progress=0.29, labels=labels)
        losses.total.backward()
        model.after_step()
    assert losses.pixel > 0 and losses.contrast > 0 and losses.total == model.config.estimating.contrast_weight * losses.contrast
    assert all(w.grad is None for w in model.restorer.backbone.parameters())
    assert model.restorer.encoder.layers[0].weight.grad.any()
    assert [tuple(model.weights_at(p)) for p in (0.0, 0.3)] == [(0.0, 0.004), (1.0, 0.004)]
    for arm in (dict(contrast=False), dict(vector="oracle")):
        assert tuple(build(encoder_warmup=0.3, **arm).weights_at(0.0)) == (1.0, 0.0)


@pytest.mark.parametrize("changes, parts", [
    ({}, 3), ({"contrast": False}, 2), ({"vector": "oracle"}, 2), ({"vector": "shuffled"}, 3), ({"vector": "shuffled", "contrast": False}, 2),
    ({"local_vector": True}, 3), ({"local_vector": True, "contrast": False}, 2)])
def test_every_arm_trains(changes, parts):
    model, (data, labels) = build(encoder_warmup=0.0, **changes), batch()
    optimizer, pixels = torch.optim.Adam(model.parameters(), lr=3e-3), []
    before = copy.deepcopy(model.networks())
    for step in range(8):
        losses, _ = model.objective(data.lr, data.hr, generator("arm", step), progress=0.5, labels=labels)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        model.after_step()
        pixels.append(losses.pixel.item())
    assert len(model.networks()) == parts and pixels[-1] < pixels[0]
    for name, part in model.networks().items():
        assert any(not torch.equal(a, b) for a, b in zip(part.parameters(), before[name].parameters())), name


def test_shuffled_takes_the_vector_of_another_pair():
    model, (data, labels) = build(vector="shuffled"), batch()
    own = model.restorer.encoder(data.lr)
    offsets = set()
    for draw in range(12):
        _, sr = model.objective(data.lr, data.hr, generator("shuffle", draw), labels=labels)
        (offset,) = [k for k in range(6) if torch.allclose(sr, model.restorer(data.lr, own.roll(k, 0)), atol=1e-6)]
        offsets.add(offset)
    assert offsets == {2, 4}
    model.after_step()
    strangers = model.restorer.strangers
    assert strangers[:6].any(1).all() and not model.seen
    picked = model.estimate(data.lr).flatten(1)
    assert torch.equal(picked, model.estimate(data.lr).flatten(1)) and all(any(torch.equal(v, s) for s in strangers) for v in picked)


def test_a_map_of_vectors_is_local():
    model = build(local_vector=True)
    lr = torch.rand(1, 3, 64, 64)
    other = lr.clone()
    other[..., 40:] = torch.rand(1, 3, 64, 24)
    vectors, changed = model.estimate(lr), model.estimate(other)
    assert vectors.shape == (1, 8, 64, 64)
    assert torch.equal(vectors[..., :8], changed[..., :8]) and not torch.allclose(vectors[..., 48:], changed[..., 48:])


def test_true_figures_by_hand():
    params = [Degradation.parse(text, scale=4)(torch.rand(1, 3, 32, 32), generator("t"))[1][0] for text in ("aniso:3,1,30+noise:10", "iso:2", "bicubic")]
    half, root = 0.5 * 0.5, 0.5 * math.sqrt(3) / 2  # (3 - 1) / (3 + 1) times cos 60 and sin 60 degrees
    expected = torch.tensor([[0.75, 0.25, half, root, 0.4], [0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(true_figures(params), expected, atol=1e-5, rtol=0)
    assert true_figures([]).shape == (0, 5)


@pytest.mark.parametrize("labels, changes, word", [
    (None, {}, "pairing 'same_degradation'"), (Labels(torch.arange(6), torch.arange(6)), {}, "degraded alike"), (PAIRS, {"vector": "oracle"}, "got 0, expected 6"),
    (None, {"vector": "oracle"}, "labels.params"), (None, {"vector": "shuffled", "contrast": False}, "labels.degradation")])
def test_labels_that_do_not_fit_are_refused(labels, changes, word):
    model, (data, _) = build(**changes), batch()
    with pytest.raises(ValueError, match=word) as error:
        model.objective(data.lr, data.hr, labels=labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong, word", [
    ({"num_keys": 5}, "num_keys: got 5"), ({"contrast_temperature": 0.0}, "contrast_temperature: got 0"), ({"contrast_weight": 0.0}, "more than 0"), ({"key_momentum": 1.0}, "key_momentum"),
    ({"local_vector": True, "vector": "oracle"}, "local_vector: got True"), ({"local_vector": True, "input": "upsampled"}, "local_vector: got True"), ({"vector": "none"}, "vector: got 'none'")])
def test_options_that_make_no_sense_are_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        ModelConfig.from_flat(**wrong)
    with pytest.raises(ValueError, match="pairing: got 'none', expected 'same_degradation'"):
        TrainConfig(method="estimating")
    with pytest.raises(ValueError, match="probe_every: got 5, expected 0"):
        TrainConfig(method="estimating", pairing="same_degradation", probe_every=5)


def test_a_probe_reads_more_from_a_taught_vector():
    "A linear map from the vectors of some patches to their noise level, tried on others, for an encoder before and after 100 steps of contrast alone."
    samplers = [PatchSampler(ImagePool("embedded:train"), Degradation.parse("iso+noise:0..25", scale=4), 24, size, seed, pairing)
                for size, seed, pairing in ((16, 0, "same_degradation"), (32, 7, "none"))]
    looks = [samplers[1].batch(step) for step in range(20)]
    y = torch.tensor([params.noise_level for look in looks for params in look.params]).double()

    def readable(encoder):
        with torch.no_grad():
            x = torch.cat([encoder(look.lr).flatten(1) for look in looks]).double()
        x = torch.cat([(x - x.mean(0)) / x.std(0), torch.ones(len(x), 1)], 1)
        taught, new, ridge = slice(0, 448), slice(448, None), torch.eye(x.shape[1]).double()
        read = x[new] @ torch.linalg.solve(x[taught].T @ x[taught] + ridge, x[taught].T @ y[taught])
        return 1 - ((read - y[new]) ** 2).mean().item() / y[new].var().item()

    seed_everything(0)
    settings_ = EstimatingConfig()
    encoder = DegradationEncoder(settings_.encoder_feat, settings_.vector_feat)
    branch, untaught = DegradationContrast(settings_, encoder), readable(encoder)
    optimizer = torch.optim.Adam([*encoder.parameters(), *branch.head.parameters()], lr=2e-3)
    for step in range(100):
        lr = samplers[0].batch(step).lr
        optimizer.zero_grad()
        branch(encoder(lr), lr).backward()
        optimizer.step()
        branch.after_step(encoder)
    assert readable(encoder) > untaught + 0.1


def test_the_matched_width_is_the_widest_that_fits():
    plain = num_parameters(Restorer(NetworkConfig()))
    found = matched_network(ModelConfig(), plain)
    needed = [num_parameters(EstimatingRestorer(found.replace(num_feat=width), EstimatingConfig())) for width in (found.num_feat, found.num_feat + 1)]
    assert 0.9 * plain < needed[0] <= plain < needed[1] and found.replace(num_feat=32) == NetworkConfig()


# --- at inference ---

@pytest.mark.parametrize("changes", [{}, {"local_vector": True}, {"vector": "shuffled"}])
def test_tiles_share_the_vector_of_the_whole_image(changes):
    model = build(**changes).eval()
    if changes.get("vector") == "shuffled":
        model.restorer.strangers.normal_()
    with torch.no_grad():
        model.restorer.encoder.layers[-1].weight.mul_(30)
    lr, asked = torch.rand(3, 40, 50) * torch.linspace(0, 1, 50), []
    model.restorer.encoder.register_forward_hook(lambda *_: asked.append(1))
    whole = upscale(lr, model)
    count = len(asked)
    assert (upscale(lr, model, tile=16) - whole).abs().max() < 1e-5 and len(asked) == 2 * count <= 2
    if not changes:
        assert (upscale(lr, EachTileAlone(model), tile=16) - whole).abs().max() > 1e-4


class EachTileAlone(torch.nn.Module):
    "The same model, but every tile estimates for itself."

    def __init__(self, model):
        super().__init__()
        self.inner, self.scale, self.halo = model, model.scale, model.halo

    def forward(self, lr):
        return self.inner(lr)


def test_an_oracle_is_told_by_whoever_knows(tmp_path):
    model = build(vector="oracle").eval()
    save_model(model, tmp_path / "oracle.safetensors")
    hr = torch.rand(3, 96, 96, generator=generator("hr"))
    result = evaluate(tmp_path / "oracle.safetensors", {"a": hr}, "iso:2")
    degradation = Degradation.parse("iso:2", scale=4)
    lr, params = degradation(hr[None].double(), generator(0, "evaluate", 0))
    with torch.no_grad():
        assert torch.allclose(upscale(lr.float(), Told(model, params[0]), tile=8), told(model, params[0])(lr.float()).clamp(0, 1), atol=1e-5)
    other = evaluate(tmp_path / "oracle.safetensors", {"a": hr}, "iso:1")
    assert result["psnr"] != other["psnr"] and told(build(), params[0]).__class__ is EstimatingSR
    with pytest.raises(ValueError, match="trained with vector 'oracle'") as error:
        upscale(lr[0].float(), tmp_path / "oracle.safetensors")
    assert "\n" not in str(error.value)


def test_a_grid_and_its_pictures_tell_an_oracle_too():
    model, photographs = build(vector="oracle").eval(), {"a": torch.rand(3, 96, 96, generator=generator("hr"))}
    grid = evaluate_grid({"oracle": model}, {"one": photographs}, ["iso:1", "iso:2"])
    assert [row["psnr"] for row in grid["rows"]] == [evaluate(model, photographs, preset)["psnr"] for preset in ("iso:1", "iso:2")]
    picture = picture_grid({"oracle": model}, {"one": photographs}, ["iso:2"])
    assert picture.width > 0 and picture.height > 0


class LiveBytes(TorchDispatchMode):
    "The most bytes of tensors made under it that were alive together."

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def forget(self, place):
        self.alive[place][1] -= 1
        if not self.alive[place][1]:
            del self.alive[place]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in [each for each in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(each, torch.Tensor)]:
            storage = tensor.untyped_storage()
            self.alive.setdefault(storage.data_ptr(), [storage.nbytes(), 0])[1] += 1  # views share one storage
            weakref.finalize(tensor, self.forget, storage.data_ptr())
        self.peak = max(self.peak, sum(size for size, _ in self.alive.values()))
        return result


@pytest.mark.parametrize("changes", [{}, {"num_feat": 16}, {"scale": 2}, {"input": "upsampled"}, {"local_vector": True}, {"local_vector": True, "num_feat": 32}])
def test_automatic_tiles_count_what_it_holds(changes):
    "What is alive at the worst moment of a forward pass, told the vector: within the bound and not far below it."
    model = build(**changes).eval()
    lr = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        vector = model.estimate(lr)
        with LiveBytes() as live:
            model(lr, vector)
    assert 0.5 < live.peak / 64**2 / bytes_per_pixel(model) <= 1


def test_a_file_gives_the_model_back(tmp_path):
    for changes in ({}, {"num_feat": 16}, {"vector": "shuffled"}, {"local_vector": True}, {"vector": "oracle"}):
        model, (data, labels) = build(**changes), batch()
        model.objective(data.lr, data.hr, labels=labels)
        model.after_step()
        save_model(model, tmp_path / "m.safetensors", step=1)
        loaded = load_model(tmp_path / "m.safetensors", expect_scale=4)
        assert type(loaded) is EstimatingSR and loaded.config == model.config and loaded.meta["step"] == 1 and "method" not in loaded.meta
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
        if "oracle" not in changes.values():
            with torch.no_grad():
                assert torch.equal(loaded(data.lr), model.eval()(data.lr))
    with pytest.raises(ValueError, match="weights do not fit|expected"):
        save_model(SimpleNamespace(method="estimating", config=config(num_feat=16), state_dict=model.state_dict), tmp_path / "odd.safetensors")
        load_model_file(tmp_path / "odd.safetensors")
