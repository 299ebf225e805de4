"""The folder of a run: its checkpoints and metrics, and how a run is resumed."""
