"""What makes a job wait for its test: `tests.helpers.hold.Hold` puts this folder into its
PYTHONPATH."""
