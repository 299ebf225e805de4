"""Judging a network: scores, what its latents cost, and how sure one can be of a difference."""
