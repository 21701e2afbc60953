"""Recall and question-answering tasks that are generated offline, for any tokenizer, at any length.

A task draws facts and questions (:class:`zoo.data.recall.compose.Facts`) from random numbers, and ``compose`` adds
filler to an exact length. The samples of the split ``train`` and of the split ``eval`` never have the same content. A
task is made by :mod:`zoo.data.recall.build`.
"""
