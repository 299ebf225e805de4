"""Evaluation of a network: scores, the size of its latents, and confidence intervals."""
