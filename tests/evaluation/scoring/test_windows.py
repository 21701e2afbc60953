import pytest

from zoo.evaluation.scoring.windows import Window, rolling_windows


def spans(tokens, length, stride=None):
    """Input tokens ("B" in front) and scored tokens of every window of a document 0, 1, 2, ..."""
    text = ["B", *range(tokens)]
    windows = rolling_windows(tokens, length, stride)
    return [(text[w.start : w.stop], text[w.stop + 1 - w.scored : w.stop + 1]) for w in windows]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 16, 39, 40, 50])
def test_every_token_is_scored_once_and_never_sees_itself(length):
    for stride in range(1, length + 1):
        for tokens in range(1, 41):
            windows = spans(tokens, length, stride)
            assert [token for _, scored in windows for token in scored] == list(range(tokens))
            for number, (inputs, scored) in enumerate(windows):
                assert len(inputs) == min(length, tokens if number == 0 else length)
                assert 1 <= len(scored) <= (length if number == 0 else stride)
                assert ("B" in inputs) == (number == 0)
                assert inputs[-1] == ("B" if scored[-1] == 0 else scored[-1] - 1)


def test_rolling_windows_of_lm_evaluation_harness():
    assert spans(10, 4) == [(["B", 0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5, 6], [4, 5, 6, 7]), ([5, 6, 7, 8], [8, 9])]


def test_overlapping_windows():
    assert spans(7, 4, 2) == [(["B", 0, 1, 2], [0, 1, 2, 3]), ([1, 2, 3, 4], [4, 5]), ([2, 3, 4, 5], [6])]


def test_no_tokens_no_windows():
    assert list(rolling_windows(0, 4)) == []
    assert list(rolling_windows(1, 4)) == [Window(0, 1, 1)]


@pytest.mark.parametrize(("length", "stride", "name"), [(0, None, "length"), (4, 0, "stride"), (4, 5, "stride")])
def test_lengths_and_strides_out_of_range(length, stride, name):
    with pytest.raises(ValueError, match=f"{name}="):
        list(rolling_windows(9, length, stride))
