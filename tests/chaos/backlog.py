"""How many messages a job takes that waits long: many jobs behind one slow worker.

    python -m tests.chaos.backlog [--jobs 5000] [--seconds 600]

The periods are those of production. A queue that is long because its worker is slow must not be taken for
one whose messages were lost: with the job's first message counted, the bar is 1.1 messages a job. It
counts what the broker was given, by the broker's own counter.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import redis

from client.calotype import Client
from tests.chaos import worker_program
from tests.chaos.painting import SIDE
from tests.chaos.system import Kept, System, chaos_system, kept

MOST_MESSAGES_A_JOB = 1.1
STEP_SECONDS, NUM_STEPS = 1.0, 20
NUM_CLIENTS = 4
LOOK_SECONDS = 30.0


def main() -> None:
    """Submit, wait, print what was counted, and exit with 1 beyond the bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=600.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as folder, chaos_system(Path(folder), {}) as system:
        found = messages_a_job(system, asked.jobs, asked.seconds)
    sys.exit(found > MOST_MESSAGES_A_JOB)


def messages_a_job(system: System, num_jobs: int, seconds: float) -> float:
    """The messages that the broker was given for each job, by the end of `seconds` after the last one."""
    broker = redis.Redis.from_url(system.endpoints.broker_url)
    worker = Kept(system, "slow", worker_program.serve, "worker", lambda: None, step_seconds=STEP_SECONDS)
    before = _num_messages(broker)
    with kept([worker]):
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            shares = [
                num_jobs // NUM_CLIENTS + (number < num_jobs % NUM_CLIENTS) for number in range(NUM_CLIENTS)
            ]
            for done in [pool.submit(_submit, system, share) for share in shares]:
                done.result()
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
            [states] = system.rows(
                """SELECT count(*) FILTER (WHERE state = 'queued') AS queued,
                          count(*) FILTER (WHERE state = 'running') AS running,
                          count(*) FILTER (WHERE finished_at IS NOT NULL) AS ended FROM jobs"""
            )
            found = (_num_messages(broker) - before) / num_jobs
            told = f"{states.queued} queued, {states.running} running, {states.ended} ended"
            sys.stdout.write(f"{left:5.0f} s left: {told}; {found:.3f} messages a job\n")
            sys.stdout.flush()
    return found


def _submit(system: System, number: int) -> None:
    with Client(url=system.url, api_key=system.accounts[0].api_key) as client:
        for _ in range(number):
            client.submit("a picture", width=SIDE, height=SIDE, num_inference_steps=NUM_STEPS)


def _num_messages(broker: "redis.Redis") -> int:
    """All that is pushed: the messages of jobs, and the pings that a worker sends itself."""
    return int(broker.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"])


if __name__ == "__main__":
    main()
