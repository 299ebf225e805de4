"""What a Ray of the job's own consists of. The names are Ray's, and may change with its version."""

import json
import subprocess
import sys
from pathlib import Path

from tests.jobs_run import REPOSITORY, environment
from tests.local_ray import temporary_folder

TWO_TASKS = """
import json, psutil, ray
from jobs.cluster import connected
from jobs.config import ClusterConfig

@ray.remote(num_cpus=0.5)
def double(n):
    return 2 * n

with connected(ClusterConfig(), decode_cpus=0.5) as own:
    assert own
    results = ray.get([double.remote(n) for n in range(8)])
    processes = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    print(json.dumps([results, processes]))
"""


def test_it_has_none_of_those_that_only_look_on(tmp_path: Path) -> None:
    with temporary_folder() as folder:
        done = subprocess.run(
            [sys.executable, "-c", TWO_TASKS],
            cwd=REPOSITORY,
            env=environment(tmp_path, RAY_TMPDIR=folder),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        logs = Path(folder).glob("ray/session_*_*/logs/dashboard_agent.log")
        (agent_log,) = [path.read_text() for path in logs]
    assert done.returncode == 0, done.stderr
    results, processes = json.loads(done.stdout.splitlines()[-1])
    assert results == [2 * n for n in range(8)]

    def named(part: str) -> list[str]:
        return [process for process in processes if part in process]

    # Those that it cannot be without are found by their names; so would be the others.
    assert len(named("raylet/raylet")) == len(named("gcs_server")) == 1
    assert len(named("ray::DashboardAgent")) == 1
    for part in ("monitor.py", "dashboard/dashboard.py"):
        assert not named(part)
    # The agent does not ask again and again for a dashboard that there is not.
    assert "INFO" in agent_log
    assert "Get dashboard http address failed" not in agent_log
