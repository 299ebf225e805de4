#!/usr/bin/env bash
# start_spot_watcher.sh HEAD:PORT: in the background, one per machine.
set -euo pipefail
cd "$(dirname "$0")"
# The lock is held as long as the watcher lives; a second one finds it taken and leaves.
setsid nohup flock -n "$HOME/.spot_watcher" python spot_watcher.py --head "$1" \
    >>"$HOME/spot_watcher.log" 2>&1 </dev/null &
