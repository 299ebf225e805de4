"""Entry points and Ray: what a user types, and how it reaches the cluster."""

import os
import sys

# Ray reads these when it is imported, so they are set before any module here can import it.
# A Ray of our own on one machine stays on loopback; a cluster is named by RAY_ADDRESS, which
# `ray job submit` sets, and then must not.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Only who has the token in ~/.ray may use it. That is Ray's default, of which it warns where it
    # is not set. A Ray that is imported already has read that it is not, and goes by that.
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
# Without it, Ray Train prints every line of a worker twice.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
