"""A bare Flask route that accepts a job: one INSERT with its COMMIT, one `delay()`, and a JSON answer.

`python -m bench.plane.flask_route` serves it with Werkzeug, on connections that stay open. It checks nothing,
knows no account and estimates nothing: it is what accepting a job costs at least in Flask.
"""

import argparse
import os
import uuid
from pathlib import Path
from typing import Any

from celery import Celery
from flask import Flask, request
from psycopg2.pool import ThreadedConnectionPool
from werkzeug.serving import WSGIRequestHandler, make_server

from bench.plane.noop import PREFIX

TABLE = "bench_jobs"
COLUMNS = ("prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed")
QUEUE = "route"


class Handler(WSGIRequestHandler):
    """Keeps connections open and writes no log."""

    protocol_version = "HTTP/1.1"

    def log_request(self, *_: Any) -> None:
        """Write nothing."""


def make_app(database_url: str, broker_url: str, max_connections: int) -> Flask:
    """The application with its one route."""
    app = Flask(__name__)
    celery = Celery("bare", broker=broker_url, set_as_current=False)
    celery.conf.update(
        task_ignore_result=True,
        task_default_queue=QUEUE,
        broker_transport_options={"global_keyprefix": PREFIX},
    )
    # It closes those that come back when it has the least number already.
    pool = ThreadedConnectionPool(max_connections, max_connections, database_url)
    names = ", ".join(COLUMNS)
    insert = f"INSERT INTO {TABLE} (id, {names}) VALUES ({', '.join(['%s'] * (len(COLUMNS) + 1))})"
    with_table = pool.getconn()
    with with_table, with_table.cursor() as cursor:
        cursor.execute(
            f"""CREATE TABLE IF NOT EXISTS {TABLE} (
                  id text PRIMARY KEY, prompt text NOT NULL, width integer NOT NULL, height integer NOT NULL,
                  num_inference_steps integer NOT NULL, guidance_scale double precision NOT NULL,
                  seed bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now())"""
        )
    pool.putconn(with_table)

    @celery.task(name="bare.generate")
    def generate(job_id: str) -> None:
        raise NotImplementedError(job_id)  # nothing runs it here

    @app.post("/v1/jobs")
    def create() -> tuple[dict[str, str], int]:
        body, job_id = request.get_json(), uuid.uuid4().hex
        connection = pool.getconn()
        with connection, connection.cursor() as cursor:
            cursor.execute(insert, (job_id, *(body[name] for name in COLUMNS)))
        pool.putconn(connection)
        generate.delay(job_id)
        return {"id": job_id, "state": "queued"}, 202

    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    asked = parser.parse_args()
    app = make_app(os.environ["CALOTYPE_DATABASE_URL"], os.environ["CALOTYPE_BROKER_URL"], asked.connections)
    server = make_server("127.0.0.1", asked.port, app, threaded=True, request_handler=Handler)
    asked.ready_file.touch()
    server.serve_forever()


if __name__ == "__main__":
    main()
