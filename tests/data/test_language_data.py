import lightning
import pytest
import torch
from omegaconf import OmegaConf

from tests.tiers import in_ci
from zoo.data import DataError, StdlibSource, TextSource, load_tokenizer, save_tokenizer
from zoo.data.datamodule import LanguageData


@pytest.fixture
def source(write):
    rows = [{"text": f"row {number} says {'abc' * (number % 30)}\n"} for number in range(300)]
    return TextSource(str(write(rows_DOT_jsonl=rows)))


def data(source, cache, **options):
    options = {"length": 32, "batch_size": 12, "cache_dir": str(cache), **options}
    return LanguageData(source, OmegaConf.create({"kind": "bpe", "vocab_size": 300}), **options)


class Model(lightning.LightningModule):
    """Remembers which windows it saw; its weight follows them."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], 0

    def training_step(self, batch, index):
        self.seen.append(batch["starts"].tolist())
        return self.weight * batch["tokens"].float().mean()

    def validation_step(self, batch, index):
        self.validated += int(batch["mask"].sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, steps, folder, ckpt_path=None, accumulate=3):
    model = Model()
    trainer = lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        val_check_interval=accumulate * 2,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=module, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
    return trainer, model


def test_prepare_fills_what_the_model_needs(source, cache):
    module = data(source, cache)
    module.prepare()
    assert module.vocab_size == 300 == len(module.token_bytes)
    assert set(module.fingerprint) == {"train", "validation"} and len(set(module.fingerprint.values())) == 2
    stores = dict(module.stores)
    module.prepare()
    assert all(module.stores[split] is store for split, store in stores.items())
    assert module.store("test").num_tokens > 0 and set(module.fingerprint) == {"train", "validation", "test"}
    again = data(source, cache)
    again.prepare()
    assert again.fingerprint["train"] == module.fingerprint["train"]
    for split, store in module.stores.items():
        ids = torch.from_numpy(store.tokens.astype("int64")).numpy()
        assert module.token_bytes[ids].sum() == store.counts[:, 0].sum(), split


def test_a_ready_tokenizer_gives_the_same_stores(source, cache, tmp_path):
    module = data(source, cache)
    module.prepare()
    save_tokenizer(module.tokenizer, tmp_path / "run")
    again = data(source, cache, tokenizer=load_tokenizer(tmp_path / "run"))
    again.prepare()
    assert again.fingerprint == module.fingerprint


def test_accumulation(source, cache):
    assert data(source, cache).accumulate(1) == 1
    assert data(source, cache, micro_batch_size=2).accumulate(3) == 2
    with pytest.raises(DataError, match=r"batch_size=12 is not divisible by 5 devices"):
        data(source, cache).accumulate(5)
    with pytest.raises(DataError, match=r"not divisible by micro_batch_size=4 x 2 devices = 8"):
        data(source, cache, micro_batch_size=4).accumulate(2)
    for option in ({"batch_size": 0}, {"length": 0}, {"num_workers": -1}, {"val_tokens": 0}, {"micro_batch_size": 0}):
        with pytest.raises(DataError, match=f"{next(iter(option))}="):
            data(source, cache, **option)


def test_loaders_work_without_a_trainer(source, cache):
    module = data(source, cache, isolate_documents=True)
    batch = next(iter(module.train_dataloader()))
    assert batch["tokens"].shape == (12, 33) and batch["documents"].shape == (12, 32)
    assert sum(int(b["mask"].sum()) for b in module.val_dataloader()) == module.stores["validation"].num_tokens - 1


@pytest.mark.parametrize("workers", [*in_ci(0), 2])
def test_training_resumes_where_it_stopped(source, cache, tmp_path, workers):
    straight = fit(data(source, cache, micro_batch_size=4), 10, tmp_path)[1]
    trainer, first = fit(data(source, cache, micro_batch_size=4, num_workers=workers), 4, tmp_path)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    resumed = data(source, cache, micro_batch_size=4, num_workers=workers)
    second = fit(resumed, 10, tmp_path, ckpt_path=tmp_path / "four.ckpt")[1]
    assert len(straight.seen) == 30 and first.seen + second.seen == straight.seen
    assert torch.equal(second.weight, straight.weight)
    assert straight.validated == 5 * (resumed.stores["validation"].num_tokens - 1)


@pytest.mark.slow
def test_the_default_corpus_in_one_go(cache):
    """What a first `train.py` does with the data, in seconds."""
    module = LanguageData(StdlibSource(), {"kind": "bytes"}, length=256, batch_size=8, cache_dir=str(cache))
    module.prepare()
    train, validation = module.stores["train"], module.stores["validation"]
    assert train.num_tokens > 2_000_000 and validation.num_tokens > 50_000
    assert train.num_tokens == train.counts[:, 0].sum() + len(train)
