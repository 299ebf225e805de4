"""Sweeps: many runs of jobs/train.py with different settings, and which of them are right."""
