"""Scoring of tokens by a decoder: likelihoods, answers, perplexities."""
