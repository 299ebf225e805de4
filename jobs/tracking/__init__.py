"""Sending a run's figures and files to MLflow and TensorBoard."""
