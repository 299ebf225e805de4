"""A Ray of the job's own: what it runs, and whom it asks."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

from tests.helpers.jobs_run import REPOSITORY, assert_quiet, environment
from tests.helpers.local_ray import temporary_folder

TASKS = """
import json, os
from jobs.cluster.connection import connected
import ray
from jobs.cli.config import ClusterConfig

@ray.remote(num_cpus=0.5)
def double(n):
    return 2 * n, os.nice(0)

@ray.remote(num_cpus=0)
class Cleaner:
    # Of Ray Train, which ends the workers of a controller that is not there.
    def sees(self, controller):
        from ray.train.v2._internal.state.util import is_actor_alive
        try:
            return bool(is_actor_alive(controller, timeout=10))
        except ray.util.state.exception.RayStateApiException:
            return "nobody answers"

with connected(ClusterConfig(), decode_cpus=0.5) as own:
    assert own
    results = ray.get([double.remote(n) for n in range(8)])
    cleaner = Cleaner.remote()
    print(json.dumps([results, ray.get(cleaner.sees.remote(cleaner._actor_id.hex()))]))
"""


@contextmanager
def dashboard_of_another_ray(asked: list[str]) -> Iterator[str]:
    """Its address. It knows no actor, and notes what it is asked."""

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            nothing = {"result": [], "total": 0, "num_after_truncation": 0, "num_filtered": 0}
            body = json.dumps({"result": True, "data": {"result": nothing}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Dashboard)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_its_workers_yield_to_nobody_and_ask_no_other_ray(tmp_path: Path) -> None:
    asked: list[str] = []
    with temporary_folder() as folder, dashboard_of_another_ray(asked) as address:
        done = subprocess.run(
            [sys.executable, "-c", TASKS],
            cwd=REPOSITORY,
            # As it is set where a user also submits jobs to a cluster.
            env=environment(tmp_path, RAY_TMPDIR=folder, RAY_API_SERVER_ADDRESS=address),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert_quiet(done.stdout + done.stderr)
    results, seen = json.loads(done.stdout.splitlines()[-1])
    niceness = int(subprocess.check_output(["nice"]))
    assert results == [[2 * n, niceness] for n in range(8)]
    assert seen == "nobody answers"
    assert asked == []
