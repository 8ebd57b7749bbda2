"""`make bench-peers`: a Celery task runs, is stopped, killed and counted; a peer that fails is left out."""

from dataclasses import replace
from pathlib import Path

from bench.latency import Solo
from bench.peers.comparison import SHORT, Comparison
from bench.peers.load import Load, at_once, balanced_requests
from bench.peers.peer import PEERS, Settings, started
from bench.peers.phases import choose_size, references_of
from bench.peers.service import awake

SIDE = 64
FLASK = ("flask", "--app", "bench.peers.celery_front:application", "run", "--port", "PORT")
"""In place of gunicorn, which is not among our packages."""


def test_a_celery_task_draws_what_the_bare_pipeline_draws_and_survives_a_stop_and_a_kill(
    tmp_path: Path,
) -> None:
    [celery] = [peer for peer in PEERS if peer.name == "Celery task"]
    celery = replace(celery, commands=[celery.commands[0], FLASK])
    requests = [replace(one, num_inference_steps=4) for one in balanced_requests(6, SIDE, 0)]
    load = Load(references_of(requests[:2]))
    with started(celery, Settings(), tmp_path / "packages", tmp_path / "service") as service:
        service.suspend()
        with awake(service, requests[:1]):
            run = load.run(service, at_once(requests), "capacity")
        assert run.num_lost == 0, run.errors
        assert run.cpu_seconds > 0
        service.resume()
        killed = load.run(service, at_once(requests), "kill", at={3: service.kill_worker})
        assert killed.num_lost == 0, killed.errors
    assert not [one for one in service.processes() if one.is_running()]


def test_a_peer_that_does_not_start_is_left_out_with_the_reason_of_its_log(tmp_path: Path) -> None:
    told: list[str] = []
    amounts = replace(SHORT, sizes=(8, 32))
    comparison = Comparison(Load({}), Solo({}), amounts, tmp_path, tmp_path, say=told.append)
    peer = replace(PEERS[0], commands=[["bench.peers.no_such_server"]])
    choose_size(comparison, peer)
    assert list(comparison.dropped[peer.name]) == ["batches of 32, 100 ms", "batches of 8, 100 ms"]
    assert "No module named bench.peers.no_such_server" in comparison.left_out[peer.name]
    assert peer.name in "".join(told)
    assert peer not in comparison.peers()
