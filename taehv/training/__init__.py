"""Training a network: the loop, its step and state, and what watches over them."""

from taehv.training.loop import Summary, train

__all__ = ["Summary", "train"]
