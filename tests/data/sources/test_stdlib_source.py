import shutil
import sysconfig
from pathlib import Path

import pytest

from zoo.data import DataError, StdlibSource
from zoo.data.documents import SPLITS


@pytest.fixture(scope="module")
def stdlib():
    return StdlibSource()


def texts(source):
    return {split: [document.text for document in source.documents(split)] for split in SPLITS}


def test_splits_are_a_partition_of_about_90_5_5(stdlib):
    found = texts(stdlib)
    everything = [text for split in SPLITS for text in found[split]]
    assert len(everything) == len(set(everything)) > 300
    shares = [len(found[split]) / len(everything) for split in SPLITS]
    assert shares[0] == pytest.approx(0.9, abs=0.04)
    assert shares[1] == pytest.approx(0.05, abs=0.03)
    assert shares[2] == pytest.approx(0.05, abs=0.03)
    assert all(found.values())


def test_tests_and_generated_tables_are_left_out(stdlib):
    names = {document.name for split in SPLITS for document in stdlib.documents(split)}
    assert {"argparse.py", "os.py", "json/decoder.py", "encodings/aliases.py"} <= names
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data"}
    left_out = {"encodings/cp437.py", "html/entities.py", "keyword.py", "token.py", "stringprep.py"}
    assert not names & left_out
    assert not any("_sysconfigdata" in name for name in names)


def test_order_does_not_depend_on_the_file_system(stdlib, tmp_path):
    root = Path(sysconfig.get_paths()["stdlib"])
    picked = sorted(root.glob("[a-f]*.py"))
    for target, order in (("one", picked), ("two", picked[::-1])):
        (tmp_path / target).mkdir()
        for path in order:
            shutil.copy(path, tmp_path / target)
    first, second = (StdlibSource(str(tmp_path / name)) for name in ("one", "two"))
    assert [d.name for d in first.documents("train")] == [d.name for d in second.documents("train")]
    assert first.fingerprint("train") == second.fingerprint("train")
    assert first.fingerprint("train") != first.fingerprint("validation")


def test_equal_contents_count_once_and_empty_files_not_at_all(tmp_path):
    for name, text in {"a.py": "x = 1\n", "b.py": "x = 1\n", "c.py": "", "d.py": "y = 2\n"}.items():
        (tmp_path / name).write_text(text)
    assert sorted(text for split in texts(StdlibSource(str(tmp_path))).values() for text in split) == [
        "x = 1\n",
        "y = 2\n",
    ]


def test_a_library_without_sources_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no Python sources.*data=text"):
        list(StdlibSource(str(tmp_path)).documents("train"))


def test_unknown_split(stdlib):
    with pytest.raises(DataError, match=r"'dev'.*train, validation, test"):
        list(stdlib.documents("dev"))
