"""The parts of `jobs/encode.py`: videos to shards of latents, and back."""
