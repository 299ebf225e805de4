"""The parts of `jobs/evaluate.py`: what it is told, the scoring, the results and their files."""
