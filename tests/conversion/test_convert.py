"""Whole runs with fewer key heads: identities in fp64, the folder that is written, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import zoo
from tests.evaluation.tiny_run import make_run, save_checkpoint
from zoo.cli import friendly_errors
from zoo.commands import convert
from zoo.config import ConfigError
from zoo.conversion.conversion_plan import plan_conversion
from zoo.conversion.convert_run import calibration_tokens, convert_decoder, convert_run, second_moments
from zoo.conversion.head_merging import METHODS
from zoo.evaluation.scoring.perplexity_sums import evaluate_perplexity
from zoo.model.decoder import Decoder, DecoderConfig
from zoo.model.from_config import Architecture, decoder_config
from zoo.runs.loaded_run import open_run

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = [
    {},
    {"rope_theta": None},
    {"rope_fraction": 0.5},
    {"gate": "silu", "sink_logits": True},
    {"qk_norm": True},
    {"head_dim": 6, "value_dim": 10},
]


def decoder_of(*layers, mixers=None, heads=4, width=32, dtype=torch.float64):
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(257, width, len(layers), heads, list(layers), mixers or {})).to(dtype)
    with torch.no_grad():  # far from uniform, so that differences would show
        decoder.embedding.weight.mul_(30)
    for block in decoder.layers:
        if getattr(block.mixer, "sink_logits", None) is not None:
            torch.nn.init.normal_(block.mixer.sink_logits)
    return decoder.eval()


def share_a_head(decoder, groups):
    """Make the key and value heads of every group the same."""
    with torch.no_grad():
        for block in decoder.layers:
            for weight in (block.mixer.key.weight, block.mixer.value.weight):
                heads = weight.view(groups, block.mixer.kv_heads // groups, -1, decoder.config.width)
                heads.copy_(heads[:, :1].expand_as(heads).clone())


def ids(length=24, rows=2):
    return torch.randint(0, 257, (rows, length))


@pytest.fixture
def run(tmp_path):
    """A run folder of an fp64 decoder with two softmax layers of different options around a lightning layer."""
    mixers = {"nope": {"name": "softmax", "rope_theta": None}, "softmax": {"rope_fraction": 0.5}, "lightning": {}}
    folder = make_run(tmp_path, decoder_of("softmax", "lightning", "nope", mixers=mixers))
    config = OmegaConf.load(folder / "config.yaml")
    config.attention = "softmax"
    config.schedule = {"pattern": "attention+lightning+nope", "patch": None}
    config.mixers = {**mixers, "gqa": {"kv_heads": None}, "unused": {"name": "gqa"}}
    config.model = {"name": "nano", "separators": [], "width": 32, "depth": 3, "heads": 4}
    OmegaConf.save(config, folder / "config.yaml")
    fingerprint = open_run(folder).trained.tokenizer
    save_checkpoint(folder / "checkpoints" / "last.ckpt", open_run(folder).decoder.double(), tokenizer=fingerprint)
    return open_run(folder)


@pytest.mark.parametrize(
    ("options", "method"), [(o, m) for o in OPTIONS for m in METHODS if m != "svd" or "qk_norm" not in o]
)
@pytest.mark.parametrize(("to", "kv_heads"), [("gqa", 2), ("mqa", 1)])
def test_equal_heads_convert_exactly(options, method, to, kv_heads):
    decoder, x = decoder_of("softmax", "softmax", mixers={"softmax": options}), ids()
    before = decoder(x)
    share_a_head(decoder, kv_heads)
    assert not torch.allclose(decoder(x), before, atol=0.1)
    converted, _ = convert_decoder(decoder, plan_conversion(decoder, to, kv_heads, method))
    assert {type(block.mixer).__name__ for block in converted.layers} == {
        "GroupedQueryAttention" if to == "gqa" else "MultiQueryAttention"
    }
    torch.testing.assert_close(converted(x), decoder(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("whitened", [False, True])
def test_heads_equal_up_to_a_complex_number_per_frequency_convert_exactly(whitened):
    decoder, x = decoder_of("softmax", "softmax"), ids()
    with torch.no_grad():
        share_a_head(decoder, 2)
        for block in decoder.layers:
            pairs = torch.view_as_complex(block.mixer.key.weight.view(4, 4, 2, 32).mT.contiguous())  # (H, D/2, C)
            pairs = pairs * torch.randn(4, 4, 1, dtype=torch.complex128)
            block.mixer.key.weight.copy_(torch.view_as_real(pairs).mT.reshape(32, 32))
            values = block.mixer.value.weight.view(4, 8, 32)
            values.copy_(torch.randn(4, 8, 8, dtype=torch.float64) @ values)
    moments = second_moments(decoder, x) if whitened else None
    converted, errors = convert_decoder(decoder, plan_conversion(decoder, "gqa", 2, "svd"), moments)
    torch.testing.assert_close(converted(x), decoder(x), rtol=0, atol=1e-10)
    assert max(error.keys + error.values + error.scores + error.outputs for error in errors) < 1e-10
    mean, _ = convert_decoder(decoder, plan_conversion(decoder, "gqa", 2, "mean"))
    assert not torch.allclose(mean(x), decoder(x), atol=0.1)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_as_many_heads_as_before_is_bitwise_the_same(options, method):
    decoder, x = decoder_of("softmax", "lightning", mixers={"softmax": options}, dtype=torch.float32), ids()
    converted, errors = convert_decoder(decoder, plan_conversion(decoder, "gqa", 4, method))
    assert converted.config.layer_types == ["gqa", "lightning"]
    assert all(torch.equal(value, decoder.state_dict()[name]) for name, value in converted.state_dict().items())
    assert torch.equal(converted(x), decoder(x))
    assert (errors[0].keys, errors[0].values, errors[0].outputs) == (0, 0, 0)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_decoding_from_the_cache_is_the_whole_and_the_cache_is_that_of_gqa(kv_heads):
    decoder, x = decoder_of("softmax", "softmax"), ids()
    converted, _ = convert_decoder(decoder, plan_conversion(decoder, "gqa", kv_heads, "svd"))
    cache = converted.new_cache(2)
    pieces = [converted(piece, cache=cache) for piece in x.split([9, 1, 1, 13], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), converted(x), rtol=0, atol=1e-10)
    fresh = decoder_of("gqa", "gqa", mixers={"gqa": {"kv_heads": kv_heads}})
    assert converted.cost(100) == fresh.cost(100)
    assert converted.cost(100).cache_bytes * 4 == decoder.cost(100).cache_bytes * kv_heads
    full = decoder.new_cache(2)
    decoder(x, cache=full)
    assert cache.nbytes() * 4 == full.nbytes() * kv_heads


def test_second_moments_are_those_of_the_inputs_of_the_mixers():
    decoder, x = decoder_of("softmax", "lightning"), ids(rows=3)
    first, second = second_moments(decoder, x)
    inputs = decoder.layers[0].mixer_norm(decoder.embedding(x)).detach().flatten(0, 1)
    torch.testing.assert_close(first, inputs.mT @ inputs / len(inputs))
    assert second.diagonal().sum() == pytest.approx(32, rel=1e-3)  # RMS-normed with weights of 1
    assert not decoder.layers[0].mixer._forward_pre_hooks


@torch.no_grad()
def test_whitened_errors_are_smaller_on_the_text_itself():
    decoder, x = decoder_of("softmax", "softmax"), ids(64, 8)
    moments = second_moments(decoder, x)
    plan = plan_conversion(decoder, "gqa", 2, "svd")
    taken = {}
    decoder.layers[0].mixer.value.register_forward_hook(lambda m, i, y: taken.update(exact=y, x=i[0]))
    decoder(x)
    for name, c in (("plain", None), ("white", moments)):
        converted, errors = convert_decoder(decoder, plan, c)
        value, out = (getattr(converted.layers[0].mixer, n).weight for n in ("value", "out"))
        taken[name] = (taken["x"] @ value.mT, out, errors[0].values)
    exact = taken["exact"].unflatten(-1, (4, 8))
    white = {}
    for name in ("plain", "white"):  # the best linear rebuilding of every head from its shared one
        shared = taken[name][0].unflatten(-1, (2, 8)).repeat_interleave(2, -2)
        rebuilt = [
            shared[..., h, :].flatten(0, 1)
            @ torch.linalg.lstsq(shared[..., h, :].flatten(0, 1), exact[..., h, :].flatten(0, 1)).solution
            for h in range(4)
        ]
        white[name] = float((torch.stack(rebuilt, 1) - exact.flatten(0, 1)).norm() / exact.norm())
    assert white["white"] == pytest.approx(taken["white"][2], rel=1e-6)
    assert white["white"] < white["plain"]


def test_a_converted_run_is_a_run(run):
    done = convert_run(run, "gqa", 2, "svd")
    assert done.folder.name == f"{run.folder.name}-gqa2-svd"
    new = open_run(done.folder)
    assert new.decoder.config.layer_types == ["gqa", "lightning", "nope_gqa"]
    assert new.config.attention == "gqa"
    assert new.decoder.config.mixers["gqa"] == {"rope_fraction": 0.5, "kv_heads": 2}
    assert new.decoder.config.mixers["nope_gqa"] == {"name": "gqa", "rope_theta": None, "kv_heads": 2}
    built = decoder_config(Architecture.of(new.config), 257, run.decoder.config.separator_tokens)
    assert built == new.decoder.config, "training must build what the checkpoint holds"
    expected, _ = convert_decoder(run.decoder, plan_conversion(run.decoder, "gqa", 2, "svd"))
    x = ids()
    torch.testing.assert_close(zoo.load(done.folder).double()(x), expected.double()(x), rtol=0, atol=1e-4)
    assert new.decoder.generate([[256, 97]], 5, seed=1) == expected.generate([[256, 97]], 5, seed=1)
    documents = [torch.arange(40).numpy() % 100]
    counts = torch.tensor([[40, 8, 40]]).numpy()
    assert evaluate_perplexity(new.decoder, documents, counts, 256, 16)
    assert done.cache_bytes[1] < done.cache_bytes[0]
    facts = json.loads((done.folder / "conversion.json").read_text())
    assert (facts["sha256"], facts["layers"], facts["method"]) == (run.sha256, [0, 2], "svd")
    assert set(facts["errors"]) == {"mean", "first", "svd"}
    for svd, mean in zip(facts["errors"]["svd"], facts["errors"]["mean"]):
        assert svd["keys"] < mean["keys"] and svd["values"] < mean["values"]
    assert not list(done.folder.parent.glob(".*.tmp"))


def test_a_whitened_conversion_reads_the_training_text(run):
    tokens = calibration_tokens(run, 64)
    assert tokens.shape == (4, 16) and tokens[0, 0] == 256
    text = "one two three\n" * 20
    assert bytes(tokens[-1].tolist()).decode() in text
    plain, white = (convert_run(run, "mqa", None, "svd", whiten_tokens=n) for n in (None, 128))
    assert white.folder.name.endswith("-mqa-svd-whitened")
    again = convert_decoder(run.decoder, plain.plan, second_moments(run.decoder, calibration_tokens(run, 128)))[1]
    assert white.errors["svd"] == again
    for svd, mean in zip(white.errors["svd"], white.errors["mean"]):
        assert svd.keys <= mean.keys and svd.values <= mean.values
    with pytest.raises(ConfigError, match="whiten_tokens=0"):
        convert_run(run, "mqa", None, "svd", "other", whiten_tokens=0)


def test_layers_that_are_not_softmax_or_have_fewer_heads_stay():
    layers = ("softmax", "window", "lightning", "mqa", "gqa", "wide")
    mixers = {"gqa": {"kv_heads": 2}, "wide": {"name": "gqa", "kv_heads": 4}, "window": {"window": 4}}
    decoder = decoder_of(*layers, mixers=mixers, heads=8, width=64)
    plan = plan_conversion(decoder, "gqa", 4, "mean")
    assert plan.layers == [0, 5]
    assert plan.config.layer_types == ["softmax_gqa", "window", "lightning", "mqa", "gqa", "wide_gqa"]
    converted, _ = convert_decoder(decoder, plan)
    kept = {n: v for n, v in decoder.state_dict().items() if not n.startswith("blocks.0.mixer")}
    assert all(torch.equal(converted.state_dict()[name], value) for name, value in kept.items())
    assert [b.mixer.kv_heads for b in converted.layers] == [4, 8, 8, 1, 2, 4]


def test_what_cannot_be_converted_says_why(run, tmp_path):
    decoder = decoder_of("softmax", "lightning")
    for to, kv_heads, method, message in (
        ("gqa", 3, "svd", "kv_heads=3 does not divide the model's 4 heads: expected 1, 2, 4"),
        ("gqa", 0, "svd", "kv_heads=0"),
        ("mqa", 2, "svd", "to=mqa has one key head"),
        ("ring", 2, "svd", "to=ring: expected gqa or mqa"),
        ("gqa", 2, "best", "'best': expected one of mean, first, svd"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_conversion(decoder, to, kv_heads, method)
    with pytest.raises(ConfigError, match=r"no layer has softmax attention with 2 key heads or more.*lightning"):
        plan_conversion(decoder_of("lightning", "window"), "gqa", 2, "svd")
    with pytest.raises(ConfigError, match=r"layer 1 \(normed\).*qk_norm=true.*method=mean"):
        mixers = {"normed": {"name": "softmax", "qk_norm": True}}
        plan_conversion(decoder_of("softmax", "normed", mixers=mixers), "gqa", 2, "svd")
    with pytest.raises(ConfigError, match=r"does not divide the 4 key heads of layer 0 \(gqa\)"):
        plan_conversion(decoder_of("gqa", mixers={"gqa": {"kv_heads": 4}}, heads=12, width=48), "gqa", 3, "mean")
    with pytest.raises(ConfigError, match="exists already: set out="):
        convert_run(run, "gqa", 2, "svd", tmp_path)


def test_the_script_prints_errors_by_method_and_user_errors_in_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with friendly_errors():
            convert.main(["device=cpu", *arguments])
        return capsys.readouterr()

    out = tmp_path / "new, with=signs"
    printed = call(f"run={run.folder}", "kv_heads=1", "method=mean", f"out={out}", "whiten=true").out
    assert printed.count("mean (written)") == printed.count("svd  ") == printed.count("first  ") == 2
    assert f"written: {out}" in printed and open_run(out).decoder.layers[0].mixer.kv_heads == 1
    for arguments, message in (
        (["to=gqa"], "run is not set"),
        ([f"run={run.folder}", "kv_heads=3"], "does not divide"),
        ([f"run={run.folder}", f"out={out}"], "exists already"),
    ):
        with pytest.raises(SystemExit, match="2"):
            call(*arguments)
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
