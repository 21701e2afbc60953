"""Bridge to lm-evaluation-harness: decoders of this project as its models, its tasks as tasks of this project."""
