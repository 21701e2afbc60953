"""Reading a decoder back: what is whole is read exactly, what is not is refused, and nothing is ever run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import zoo
from zoo.model import CheckpointError, Decoder, DecoderConfig

CONFIG = DecoderConfig(61, 32, 2, 4, ["lightning", "wide"], {"wide": {"name": "softmax", "kv_heads": 2}})
RAN: list[str] = []


def attack() -> None:
    """What a malicious checkpoint would run."""
    RAN.append("code of a checkpoint ran")


class Malicious:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return attack, ()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a last checkpoint."""
    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    write(tmp_path)
    return tmp_path


def content(**changes):
    state = {f"decoder.{name}": value for name, value in Decoder(CONFIG).state_dict().items()}
    state["other.weight"] = torch.zeros(3)
    return {"decoder": CONFIG.to_dict(), "state_dict": state, "step": 7} | changes


def write(run: Path, name: str = "last", **changes) -> Path:
    file = run / "checkpoints" / f"{name}.ckpt"
    torch.save(content(**changes), file)
    return file


def same(a: Decoder, state: dict) -> bool:
    mine = a.state_dict()
    return all(torch.equal(mine[n.removeprefix("decoder.")], v) for n, v in state.items() if n.startswith("decoder."))


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_comes_back_exactly_and_in_evaluation_mode(run, tied):
    config = DecoderConfig(**CONFIG.to_dict() | {"tie_embeddings": tied})
    decoder = Decoder(config)
    state = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    file = write(run, decoder=config.to_dict(), state_dict=state)
    for loaded in (zoo.load(run), zoo.load(file), zoo.load(str(run))):
        assert loaded.config == config
        assert not loaded.training
        assert same(loaded, state)
        assert (loaded.head.weight is loaded.embedding.weight) == tied
        ids = torch.randint(61, (2, 9))
        assert torch.equal(loaded(ids), decoder.eval()(ids))


def test_a_named_checkpoint_is_taken(run):
    best = content()
    torch.save(best, run / "checkpoints" / "best.ckpt")
    assert same(zoo.load(run, "best"), best["state_dict"])
    assert not same(zoo.load(run), best["state_dict"])


def test_a_loaded_decoder_does_not_write_to_its_file(run):
    file = run / "checkpoints" / "last.ckpt"
    before = file.read_bytes()
    loaded = zoo.load(run)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert file.read_bytes() == before


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist: expected a run folder or a checkpoint file"):
        zoo.load(tmp_path / "nowhere")


def test_a_run_without_checkpoints_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint 'last': it has none yet"):
        zoo.load(tmp_path)


def test_a_missing_checkpoint_is_refused_with_those_that_exist(run):
    write(run, "step-100")
    with pytest.raises(CheckpointError, match="has no checkpoint 'best': it has last, step-100"):
        zoo.load(run, "best")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -1])
def test_a_truncated_file_is_refused(run, kept):
    file = run / "checkpoints" / "last.ckpt"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match="it is damaged or holds more than plain data"):
        zoo.load(run)


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_refused(run, seed):
    size = 10 ** (seed + 1)
    (run / "checkpoints" / "last.ckpt").write_bytes(random.Random(seed).randbytes(size))
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        zoo.load(run)


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_is_refused_or_harmless(run, seed):
    """A bit of the padding between parts may flip unseen; one of a weight, a name or a number may not."""
    file = run / "checkpoints" / "last.ckpt"
    whole, state = bytearray(file.read_bytes()), torch.load(file)["state_dict"]
    place = random.Random(seed).randrange(8 * len(whole))
    whole[place // 8] ^= 1 << place % 8
    file.write_bytes(whole)
    try:
        loaded = zoo.load(run)
    except CheckpointError:
        return
    assert same(loaded, state)
    assert loaded.config == CONFIG


@pytest.mark.parametrize("place", ["decoder", "state_dict", "step", "extra"])
def test_a_malicious_pickle_is_refused_and_not_run(run, place):
    write(run, **{place: Malicious()})
    RAN.clear()
    with pytest.raises(CheckpointError, match="holds more than plain data"):
        zoo.load(run)
    assert not RAN


def test_the_malicious_pickle_would_run_without_protection(run):
    file = write(run, extra=Malicious())
    RAN.clear()
    torch.load(file, weights_only=False)
    assert RAN


def test_a_malicious_pickle_of_the_old_format_is_refused_and_not_run(run):
    file = run / "checkpoints" / "last.ckpt"
    torch.save(content(extra=Malicious()), file, _use_new_zipfile_serialization=False)
    RAN.clear()
    with pytest.raises(CheckpointError):
        zoo.load(run)
    assert not RAN


@pytest.mark.parametrize("value", [[1, 2], {}, {"state_dict": {}}, {"decoder": {}}, torch.zeros(3), "text"], ids=str)
def test_a_file_of_something_else_is_refused(run, value):
    torch.save(value, run / "checkpoints" / "last.ckpt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of this project"):
        zoo.load(run)


def changed_state(change):
    state = content()["state_dict"]
    change(state)
    return {"state_dict": state}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (lambda: changed_state(lambda s: s.update({"decoder.embedding.weight": torch.zeros(5, 32)})), "size mismatch"),
        (lambda: changed_state(lambda s: s.pop("decoder.blocks.0.mlp.up.weight")), r"Missing key.*blocks\.0\.mlp\.up"),
        (lambda: changed_state(lambda s: s.update({"decoder.new": torch.zeros(1)})), "Unexpected key.*new"),
        (lambda: changed_state(lambda s: s.update({"decoder.embedding.weight": "text"})), "embedding"),
        (lambda: {"decoder": CONFIG.to_dict() | {"width": 64}}, "size mismatch"),
        (lambda: {"decoder": CONFIG.to_dict() | {"from_the_future": 1}}, "from_the_future"),
        (lambda: {"decoder": CONFIG.to_dict() | {"heads": 5}}, "heads=5"),
        (lambda: {"decoder": CONFIG.to_dict() | {"layer_types": ["lightning", "gone"]}}, "unknown attention 'gone'"),
        (lambda: {"decoder": 3}, ""),
        (lambda: {"state_dict": [1]}, ""),
    ],
)
def test_contents_that_do_not_fit_are_refused(run, changes, told):
    write(run, **changes())
    with pytest.raises(CheckpointError, match=rf"(?s)last\.ckpt.*{told}"):
        zoo.load(run)
