import os
import time

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zoo.data import DataError, HubSource
from zoo.data.documents import SPLITS
from zoo.data.sources.wikitext import join_articles

ROWS = [
    "",
    " = First = \n",
    "",
    " Body of it . \n",
    "",
    " = = Part = = \n",
    "",
    " More . \n",
    "",
    " = Second one = \n",
    "",
    " End",
]


@pytest.fixture
def folder(tmp_path):
    """A plain layout with one config: train, validation; texts with None and empty rows among them."""
    (tmp_path / "hub" / "data").mkdir(parents=True)
    train = pa.table({"text": [f"train {n}" for n in range(500)] + ["", None], "id": range(502)})
    pq.write_table(train, tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    rest = pa.table({"text": ["held out"], "id": [0]})
    pq.write_table(rest, tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet")
    return tmp_path / "hub"


def source(folder, tmp_path, **options):
    return HubSource("someone/set", path=str(folder), cache_dir=str(tmp_path / "cache"), **options)


def test_articles():
    articles = list(join_articles(ROWS, "train"))
    assert [article.name for article in articles] == ["train/0 First", "train/1 Second one"]
    assert articles[0].text == " = First = \n \n Body of it . \n \n = = Part = = \n \n More . \n \n"
    assert articles[1].text == " = Second one = \n \n End\n"


def test_headings_need_blank_lines_around_and_one_sign_each_side():
    rows = [
        "",
        " = Real = \n",
        "",
        " text \n",
        " = Not a heading = \n",
        " text \n",
        "",
        " = Nor this = \n",
        " x = 1 \n",
    ]
    rows += ["", " = = Part = = \n", "", " = = = Deep = = = \n", "", " a = b = \n"]
    assert [article.name for article in join_articles(rows)] == ["/0 Real"]
    assert "".join(a.text for a in join_articles(rows)).replace(" \n", "") == "".join(rows).replace(" \n", "")


def test_lines_before_the_first_heading_are_kept():
    articles = list(join_articles([" tail of something \n", *ROWS]))
    assert len(articles) == 3 and articles[0].text.startswith(" tail")
    assert list(join_articles([])) == [] == list(join_articles(["", ""]))


def test_local_folder(folder, tmp_path):
    documents = list(source(folder, tmp_path).documents("train"))
    assert [d.text for d in documents] == [f"train {n}" for n in range(500)]
    assert [d.text for d in source(folder, tmp_path).documents("validation")] == ["held out"]
    with pytest.raises(DataError, match=r"no split 'test'; it has train, validation.*splits\.test=NAME"):
        list(source(folder, tmp_path).documents("test"))
    with pytest.raises(DataError, match=r"no column 'content'; it has text, id"):
        list(source(folder, tmp_path, text_column="content").documents("train"))
    with pytest.raises(DataError, match=r"column 'id' holds int"):
        list(source(folder, tmp_path, text_column="id").documents("train"))


@pytest.mark.parametrize("name", ["a [1] #ü%41", "it's * ? {x}", "a::b", "x:/y", "caf\udce9"])
def test_a_folder_and_a_cache_may_have_any_name(folder, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))  # where links lie if the cache has no plain name
    plain = source(folder, tmp_path)
    place = tmp_path / name / "hub"
    place.parent.mkdir(parents=True)
    folder.rename(place)
    read = HubSource("someone/set", path=str(place), cache_dir=str(tmp_path / name / "cache"))
    texts = [[document.text for document in read.documents(split)] for split in ("train", "validation")]
    assert [len(found) for found in texts] == [500, 1] and texts[1] == ["held out"]
    assert read.fingerprint("validation") == plain_fingerprint(plain, place, folder)
    again = HubSource("someone/set", path=str(place), cache_dir=str(tmp_path / name / "cache"))
    before = sorted(path for path in tmp_path.rglob("*.arrow"))
    assert again.fingerprint("train") == read.fingerprint("train")
    assert sorted(path for path in tmp_path.rglob("*.arrow")) == before  # what was prepared is found again
    assert (tmp_path / name / "cache" / "datasets").is_dir()


def plain_fingerprint(plain, place, folder):
    """That of the same files below a plain name."""
    place.rename(folder)
    found = plain.fingerprint("validation")
    folder.rename(place)
    return found


def test_fingerprint_follows_the_content(folder, tmp_path):
    before = {split: source(folder, tmp_path).fingerprint(split) for split in ("train", "validation")}
    file = folder / "data" / "validation-00000-of-00001.parquet"
    os.utime(file, (time.time() + 5,) * 2)
    assert source(folder, tmp_path).fingerprint("validation") == before["validation"]
    pq.write_table(pa.table({"text": ["changed!"], "id": [0]}), file)
    assert source(folder, tmp_path).fingerprint("validation") != before["validation"]
    assert source(folder, tmp_path).fingerprint("train") == before["train"]


def test_validation_set_aside_from_train(folder, tmp_path):
    own = source(folder, tmp_path, splits={"train": "train"}, validation_fraction=0.1)
    found = {split: {d.text for d in own.documents(split)} for split in SPLITS}
    assert [len(found[split]) for split in SPLITS] == pytest.approx([400, 50, 50], abs=20)
    assert len(set.union(*found.values())) == 500 == sum(map(len, found.values()))
    with pytest.raises(DataError, match=r"no 'test' split.*validation_fraction"):
        list(source(folder, tmp_path, splits={"train": "train", "test": None}).documents("test"))


def test_budgets(folder, tmp_path):
    texts = [d.text for d in source(folder, tmp_path, max_documents=7).documents("train")]
    assert texts == [f"train {n}" for n in range(7)]
    assert len(list(source(folder, tmp_path, max_bytes=15).documents("train"))) == 3
    whole = source(folder, tmp_path).fingerprint("train")
    assert source(folder, tmp_path, max_documents=7).fingerprint("train") != whole


def test_configs(tmp_path):
    for config in ("one", "two"):
        (tmp_path / "hub" / config).mkdir(parents=True)
        (tmp_path / "hub" / config / "train.jsonl").write_text(f'{{"text": "{config}"}}\n')
    configs = "".join(f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/*\n" for c in ("one", "two"))
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    own = source(tmp_path / "hub", tmp_path, config="two")
    assert [d.text for d in own.documents("train")] == ["two"]
    with pytest.raises(DataError, match=r"no config 'three'; it has one, two: .*data\.source\.config"):
        list(source(tmp_path / "hub", tmp_path, config="three").documents("train"))


def test_a_single_config_stands_in_with_a_warning(folder, tmp_path, capfd):
    assert len(list(source(folder, tmp_path, config="absent").documents("validation"))) == 1
    assert "no config 'absent'; using 'default'" in capfd.readouterr().err


def test_nothing_but_sentences_is_told_where_nobody_watches(folder, tmp_path, capfd):
    datasets.enable_progress_bars()
    assert len(source(folder, tmp_path).splits_by_name)
    assert capfd.readouterr().err == ""


def test_bad_paths(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: expected a folder with the layout"):
        list(source(tmp_path / "nowhere", tmp_path).documents("train"))
    (tmp_path / "hub").mkdir()
    with pytest.raises(DataError, match=r"could not be read"):
        list(source(tmp_path / "hub", tmp_path).documents("train"))
    with pytest.raises(DataError, match=r"join='articles'"):
        list(source(tmp_path, tmp_path, join="articles").documents("train"))


def test_code_in_a_folder_is_never_run(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hub.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError):
        list(source(tmp_path / "hub", tmp_path).documents("train"))
    assert not (tmp_path / "ran").exists()


def test_unreachable_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    own = HubSource("nobody/nothing-at-all", cache_dir=str(tmp_path))
    with pytest.raises(
        DataError, match=r"nobody/nothing-at-all could not be loaded.*point data\.path at a local folder"
    ):
        own.fingerprint("train")


def test_streaming_keeps_a_snapshot(folder, tmp_path, capfd):
    """A stream from the Hub is read once; a local folder stands in for the Hub's id here."""
    options = {"splits": {"train": "train"}, "validation_fraction": 0.1, "streaming": True}
    own = HubSource(str(folder), cache_dir=str(tmp_path / "cache"), max_documents=100, **options)
    found = {split: [d.text for d in own.documents(split)] for split in SPLITS}
    assert sum(map(len, found.values())) == 100 and capfd.readouterr().err.count("fetching") == 1
    before = own.fingerprint("train")
    for file in (folder / "data").iterdir():
        file.unlink()
    again = HubSource(str(folder), cache_dir=str(tmp_path / "cache"), max_documents=100, **options)
    assert [d.text for d in again.documents("train")] == found["train"] and again.fingerprint("train") == before
    with pytest.raises(DataError, match=r"streamed without a budget: set data\.source\.max_bytes"):
        HubSource(str(folder), cache_dir=str(tmp_path), **options).fingerprint("train")


def test_wikitext(shared_data, tmp_path, capfd):
    folder = shared_data / "hub" / "wikitext"
    if not folder.is_dir():
        pytest.skip("real text: no hub/wikitext in the folder of shared data")
    own = HubSource(
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        path=str(folder),
        join="wikitext_articles",
        cache_dir=str(tmp_path / "cache"),
    )
    train = list(own.documents("train"))
    assert "no config 'wikitext-2-raw-v1'" in capfd.readouterr().err
    assert len(train) > 40 and train[0].name == "train/0 Homarus gammarus"
    assert all(d.text.startswith(" = ") for d in train) and min(len(d.text) for d in train) > 300
    rows = [row or "\n" for file in folder.glob("*/train-*") for row in pq.read_table(file)["text"].to_pylist()]
    assert "".join(d.text for d in train).split() == "".join(rows).split()
