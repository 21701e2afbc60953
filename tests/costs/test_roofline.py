"""Work, traffic and time against hand-computed examples and against what runs."""

import math

import pytest
import torch

import zoo
from zoo.costs.hardware import DTYPES, Hardware, hardware_names, load_hardware
from zoo.costs.roofline import (
    Phase,
    activation_numbers,
    cache_read,
    decoding,
    floor,
    prefill,
    share_costs,
    state_bytes,
    training,
)
from zoo.model import Decoder, DecoderConfig
from zoo.training.optimizers.build import build_optimizer

TOY = Hardware("toy", {"bf16": 100.0, "fp32": 50.0}, bandwidth=10.0, memory=1000.0, cores=1, on_chip=1 << 16)


def decoder(layers, *, device="meta", tie=True, depth=None, **mixers):
    with torch.device(device):
        return Decoder(DecoderConfig(300, 64, depth or len(layers), 4, list(layers), mixers=mixers, tie_embeddings=tie))


def test_floor_by_hand():
    phase = Phase("x", 1, flops=600.0, traffic={"a": 20.0, "b": 30.0}, memory={"a": 5.0, "b": 6.0})
    least = floor(phase, TOY, "bf16")
    assert (phase.moved, phase.held, phase.intensity) == (50.0, 11.0, 12.0)
    assert (least.compute, least.transfer, least.seconds, least.bound) == (6.0, 5.0, 6.0, "compute")
    assert TOY.ridge("bf16") == 10.0 and TOY.ridge("fp32") == 5.0
    slow = floor(Phase("x", 1, 400.0, {"a": 50.0}, {}), TOY, "bf16")
    assert (slow.seconds, slow.bound) == (5.0, "memory")


def test_training_by_hand():
    model = decoder(["softmax"] * 2)
    p, tokens = sum(q.numel() for q in model.parameters()), 3 * 100
    phase = training(model, 100, 3, "bf16")
    kept = 2 * (8 * 64 + 4 * model.config.hidden_width()) * tokens * 2
    assert phase.tokens == tokens
    assert phase.flops == 3 * model.cost(100).flops_per_token * tokens
    assert phase.memory == {"weights": 4 * p, "gradients": 4 * p, "optimizer": 8 * p, "activations": kept}
    expected = {"weights": 4 * p, "gradients": 8 * p, "optimizer": 24 * p, "activations": 2 * kept}
    assert phase.traffic == expected
    again = training(model, 100, 3, "bf16", recompute=True)
    assert again.flops == pytest.approx(phase.flops * 4 / 3)
    assert again.memory["activations"] == kept / 2 + 2 * 64 * tokens * 2
    assert training(model, 100, 3, "bf16", "one from outside").memory == {**phase.memory, "optimizer": 0}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_are_those_of_the_optimizer(name):
    model = decoder(["softmax"], device="cpu")
    more = {"momentum": 0.9, "embedding_lr": 0.1} if name == "muon" else {}
    optimizer = build_optimizer(model, name, lr=0.1, weight_decay=0.0, betas=(0.9, 0.95), **more)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    held = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.dim())
    assert training(model, 10, 1, "bf16", name).memory["optimizer"] == held


@pytest.mark.parametrize("name", ["softmax", "gqa", "lightning"])
def test_activations_are_about_what_a_layer_keeps(name):
    model = decoder([name] * 2, device="cpu")
    seen, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage
        return tensor

    x = torch.randn(1, 256, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model.layers[1](x)
    kept = sum(storage.nbytes() for storage in seen.values()) / 4 / 256
    assert y.shape == x.shape
    assert 0.9 <= kept / activation_numbers(model) <= 1.4


@pytest.mark.parametrize("tie", [True, False])
def test_prefill_and_decoding_follow_the_costs_of_the_decoder(tie):
    model = decoder(["gqa", "lightning"], tie=tie)
    cost, p = model.cost(500), sum(q.numel() for q in model.parameters())
    head, read = 2 * 300 * 64, p - (0 if tie else 300 * 64)
    first = prefill(model, 500, 4, "bf16")
    assert first.flops == 4 * (500 * (cost.flops_per_token - head) + head)
    assert first.traffic["weights"] == 2 * read
    assert first.traffic["cache"] == first.memory["cache"] == 4 * cost.cache_bytes
    assert first.memory["weights"] == 2 * p
    step = decoding(model, 500, 4, "bf16")
    assert step.tokens == 4 and step.flops == 4 * cost.decode_flops_per_token
    assert step.traffic["weights"] == 2 * read
    assert step.traffic["cache"] == 4 * cost.cache_bytes
    assert step.traffic["states written"] == 4 * state_bytes(model.layers[1].mixer)
    assert step.memory == {"weights": 2 * p, "cache": 4 * cost.cache_bytes}


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_attention_and_states_read_all_that_they_keep(dtype):
    model = decoder(["softmax", "gqa", "mqa", "lightning", "softmax"])
    kind = DTYPES[dtype]
    for block in model.layers:
        assert cache_read(block.mixer, 777, kind) == block.mixer.cost(777, kind).cache_bytes
    assert state_bytes(model.layers[0].mixer) == 0
    assert state_bytes(model.layers[3].mixer) == model.layers[3].mixer.cost(777, torch.bfloat16).cache_bytes


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("random_blocks", [0, 2])
def test_a_sparse_attention_reads_the_blocks_of_its_heads(kv_heads, random_blocks):
    """Random blocks are of each query head, which then reads keys of its own; without them, a group shares."""
    options = {
        "block": 16,
        "window_blocks": 3,
        "random_blocks": random_blocks,
        "global_blocks": 1,
        "kv_heads": kv_heads,
    }
    mixer = decoder(["bigbird"], bigbird=options).layers[0].mixer
    keys, readers = 16 * (3 + random_blocks + 1), mixer.heads if random_blocks else kv_heads
    assert mixer.cost(16 * 200).cache_bytes == 2 * 2 * 3200 * kv_heads * 16
    assert cache_read(mixer, 16 * 200 - 1, torch.bfloat16) == 2 * 2 * keys * readers * 16


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_topk_reads_sums_of_blocks_in_fp32_and_the_picks_of_each_head(kv_heads):
    mixer = decoder(["topk"], topk={"block": 16, "top_k": 3, "kv_heads": kv_heads}).layers[0].mixer
    keys = 2 * (8 * kv_heads + 3 * 16 * mixer.heads) * 16 * 2  # eight of the own block, three blocks each
    assert cache_read(mixer, 16 * 200 + 7, torch.bfloat16) == keys + 201 * kv_heads * 16 * 4
    dense = decoder(["topk"], topk={"unit": "token", "top_k": 3, "kv_heads": kv_heads}).layers[0].mixer
    assert cache_read(dense, 3207, torch.bfloat16) == dense.cost(3207, torch.bfloat16).cache_bytes


@pytest.mark.parametrize("name", zoo.mixers.names())
def test_shared_costs_are_those_of_the_layers(name):
    plain, shared = decoder([name] * 3), share_costs(decoder([name] * 3))
    for context in (1, 300, 2048):
        assert shared.cost(context) == plain.cost(context)
        a, b = (decoding(model, context, 2, "bf16") for model in (plain, shared))
        assert a == b and 0 < a.traffic["cache"] <= a.memory["cache"]
        assert a.moved > 0 and math.isfinite(prefill(plain, context, 2, "bf16").intensity)


@pytest.mark.parametrize("name", hardware_names())
def test_every_hardware_file_is_plausible(name):
    hardware = load_hardware(name)
    dtype = hardware.choose_dtype()
    assert 1 < hardware.ridge(dtype) < 1000
    assert 1e9 < hardware.memory < 1e12 and 2**14 <= hardware.on_chip <= 2**24
    assert all(hardware.peak[a] <= hardware.peak[b] for a, b in (("fp32", "bf16"),) if {a, b} <= set(hardware.peak))


def test_hardware_can_be_changed_and_given_by_path(tmp_path):
    assert load_hardware("h200").ridge("bf16") == pytest.approx(989e12 / 4.8e12)
    assert load_hardware("h200", ["bandwidth=1e12", "peak.bf16=5e13"]).ridge("bf16") == 50
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\npeak: {fp32: 1e12}\nbandwidth: 1e9\nmemory: 1e9\ncores: 1\non_chip: 65536\n")
    assert load_hardware(str(file)).choose_dtype() == "fp32"
    file.write_text("name: mine\npeak: {fp32: 1e12}\nbandwidth: 1e9\nmemory: 1e9\ncores: 1\nonchip: 65536\n")
    with pytest.raises(ValueError, match="onchip"):
        load_hardware(str(file))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tpu", [], r"hardware=tpu: expected one of a100_80gb.*h200"),
        ("h200", ["speed=3"], "speed"),
        ("h200", ["bandwidth=-1"], "bandwidth=-1.*> 0"),
        ("h200", ["memory=lots"], "memory='lots'"),
        ("h200", ["peak.bf16=0"], "bf16=0"),
    ],
)
def test_wrong_hardware_is_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        load_hardware(name, changes)


def test_a_type_without_a_rate_is_refused():
    with pytest.raises(ValueError, match=r"dtype=fp8: toy has rates of bf16, fp32"):
        TOY.choose_dtype("fp8")
    assert TOY.choose_dtype() == "bf16"
