"""Entry points and Ray: what a user types, and how it reaches the cluster."""

import os

# Ray reads these when it is imported, so they are set before any module here can import it.
# A Ray of our own on one machine stays on loopback; a cluster is named by RAY_ADDRESS, which
# `ray job submit` sets, and then must not.
if "RAY_ADDRESS" not in os.environ:
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Without it, Ray Train prints every line of a worker twice.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
