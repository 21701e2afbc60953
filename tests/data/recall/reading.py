"""Reads samples of recall tasks as text."""


def needed(task, place, encoder):
    """Tokens of facts and questions alone, counted piece by piece."""
    facts, _, _ = task._facts(place, encoder)
    pieces = [facts.instruction, *facts.facts]
    pieces += [text for question in facts.questions for text in (question.prompt, question.answer)]
    return 1 + sum(len(encoder(piece)) for piece in pieces)


def parts(sample, encoder):
    """(text before an answer, answer, others) of every question, as decoded text."""
    return [
        (
            encoder.decode(sample.tokens[: answer.start]),
            encoder.decode(sample.tokens[answer.start : answer.stop]),
            [encoder.decode(other) for other in answer.others],
        )
        for answer in sample.answers
    ]
