"""What makes a job wait for its test: `tests.hold.Hold` puts this folder into its PYTHONPATH."""
