#!/usr/bin/env bash
# Starts the head's MLflow server on loopback, once: rows in SQLite on the volume that outlives the
# head, files in $TAEHV_STORAGE/mlflow.
set -euo pipefail
cd "$(dirname "$0")"
if (exec 3<>/dev/tcp/127.0.0.1/5000) 2>/dev/null; then
    exit 0 # It runs already: `ray up` is repeated to bring new code.
fi
state=$HOME/state
if ! python attach_disk.py --name taehv-state --folder "$state"; then
    # Training does not depend on it, so the cluster comes up; but nobody is to find out when the
    # experiments are gone.
    echo "warning: MLflow's database is on the head's own disk, and ends with the head" >&2
    mkdir -p "$state"
fi
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false setsid nohup mlflow server \
    --host 127.0.0.1 --port 5000 --workers 1 \
    --backend-store-uri "sqlite:///$state/mlflow.db" \
    --serve-artifacts --artifacts-destination "$TAEHV_STORAGE/mlflow" \
    >"$HOME/mlflow.log" 2>&1 </dev/null &
