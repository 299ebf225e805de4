"""A training run through Ray Train: its driver, its workers, and what they tell each other."""
