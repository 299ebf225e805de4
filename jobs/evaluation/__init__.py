"""The parts of `jobs/evaluate.py`: its configuration, the scoring, the results and their files."""
