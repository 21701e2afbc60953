"""Training with Lightning: module, optimizers, callbacks, loggers and the run folder."""
