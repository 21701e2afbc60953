"""Question answering from files and the Hub: records, distractors up to a length, and the samples made of them."""

from zoo.data.qa.compose_qa import compose_record
from zoo.data.qa.distractors import DistractorPool
from zoo.data.qa.presets import PRESETS, Preset, load_preset, load_set
from zoo.data.qa.qa_set import QASet
from zoo.data.qa.records import QARecord
from zoo.data.qa.squad import read_squad

__all__ = [
    "PRESETS",
    "DistractorPool",
    "Preset",
    "QARecord",
    "QASet",
    "compose_record",
    "load_preset",
    "load_set",
    "read_squad",
]
