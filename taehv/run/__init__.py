"""The folder of a run: checkpoints, metrics, and going on from them."""
