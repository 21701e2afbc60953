"""Errors of data carry the options that they are about; whoever is asked for these calls them by their names."""

import pickle

import pytest

from zoo.data.documents import DataError, Named
from zoo.data.sources.readers import read_files
from zoo.data.sources.text_files import find_files
from zoo.runs.corpus import LocalText


def column_error():
    return DataError("a.jsonl: no column 'text': ", Named("text_column", "choose one with {}=...", "rename one"))


def test_options_are_those_of_a_source_until_they_are_called_otherwise():
    error = column_error()
    assert str(error) == "a.jsonl: no column 'text': choose one with data.source.text_column=..."
    error.call("task.")
    assert str(error).endswith("choose one with task.text_column=...") and error.option == "task.text_column"
    error.call("task.", path="task.haystack", text_column=None)
    assert str(error).endswith("'text': rename one") and error.option is None
    assert DataError("nothing of options").option is None


def test_an_error_of_a_worker_says_what_it_said_there():
    error = column_error()
    error.call("task.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_file_is_named_by_the_program_that_was_given_it(tmp_path):
    missing = str(tmp_path / "no {} data.path here")  # a name may look like anything
    with pytest.raises(DataError) as refused:
        find_files(missing)
    assert str(refused.value).startswith(f"data.path={missing}: no such file") and refused.value.option == "data.path"
    with pytest.raises(DataError) as refused:
        LocalText(missing)
    assert str(refused.value).startswith(f"task.path={missing}: no such file") and refused.value.option == "task.path"


def test_a_column_that_is_not_there_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    for read, name in (
        (lambda: read_files(find_files(str(tmp_path)).by_split["all"], "text"), "data.source.text_column"),
        (lambda: LocalText(str(tmp_path)).documents("all"), "task.text_column"),
    ):
        with pytest.raises(DataError, match=rf"columns are body: choose one with {name}=\.\.\.$"):
            list(read())
