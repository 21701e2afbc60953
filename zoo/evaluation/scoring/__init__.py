"""Numbers of a decoder on tokens: likelihoods, answers, perplexities."""
