"""One contract for every mixer.

A mixer that is added later passes by being registered: its name is found here and goes through every test. There is no
list of exceptions. What is particular to one mixer is tested in tests/mixers.
"""
