"""lm-evaluation-harness: our decoders as its model, its tasks as ours."""
