import pytest

from zoo.evaluation.scoring.text_match import contains, exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Norman\tking.", "norman king"),
        ("An apple a day, the doctor's way!", "apple day doctors way"),
        ("theatre another ana", "theatre another ana"),
        ("A.B.C.", "abc"),  # punctuation goes before the articles, so that no letter is left alone
        ("a-b", "ab"),
        ("$5.50 (approx.)", "550 approx"),
        ("“Łódź”, «été»", "łódź été"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("北京。", "北京"),
        ("the", ""),
        ("  ...  ", ""),
        ("", ""),
    ],
)
def test_normalize(text, normal):
    assert normalize_answer(text) == normal
    assert normalize_answer(normal) == normal


def test_exact_match():
    assert exact_match("The Norman King!", ["norman king"]) == 1.0
    assert exact_match("King William", ["Norman king", "king  william."]) == 1.0
    assert exact_match("the Norman king William", ["Norman king"]) == 0.0
    assert exact_match("", ["308"]) == 0.0
    assert exact_match("the", ["a"]) == 1.0  # both are nothing


@pytest.mark.parametrize(
    ("prediction", "references", "value"),
    [
        ("the Norman king", ["Norman king"], 1.0),
        ("Norman king William", ["Norman king"], 0.8),  # 2 shared of 3 and 2: P 2/3, R 1
        ("king king king", ["king queen"], 0.4),  # a bag: one shared of 3 and 2
        ("in 1066 in Hastings", ["Hastings", "in Hastings"], 2 * 2 / 6),
        ("Norman", ["French", "English"], 0.0),
        ("", ["308"], 0.0),
        ("the", ["308"], 0.0),
        ("308", ["the"], 0.0),
        ("", ["a"], 1.0),
    ],
)
def test_f1(prediction, references, value):
    assert f1(prediction, references) == pytest.approx(value, abs=1e-12)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    precision, recall = 2 / 5, 2 / 3  # "red" and "fox" of five and of three words
    expected = 2 * precision * recall / (precision + recall)
    assert f1("one red fox jumped over", ["red fox ran"]) == pytest.approx(expected, abs=1e-12)


def test_contains():
    assert contains(" it was King William.", ["Norman king", "king william"]) == 1.0
    assert contains("it was William, king", ["king william"]) == 0.0
    assert contains("$5.50", [" $5.50 "]) == 1.0  # the space around a reference does not count, its punctuation does
    assert contains("5.50", ["$5.50"]) == 0.0
    assert contains("STRASSE", ["Straße"]) == 1.0
    assert contains("cafe\u0301", ["caf\u00e9"]) == 1.0
    assert contains("", ["308"]) == 0.0
    assert contains("anything", ["", " "]) == 0.0


@pytest.mark.parametrize("metric", [exact_match, f1, contains])
def test_references_are_a_list_that_is_not_empty(metric):
    with pytest.raises(ValueError, match=r"references=\[\]: expected a list"):
        metric("text", [])
    with pytest.raises(ValueError, match=r"references='text': expected a list"):
        metric("text", "text")
