"""What a run of kills shows, computed from events and images."""

from bench.kill_figures import Event, Outcome, failures, kills_of, table

ON_DEVICE = "it was on the device when its process died"
ELSEWHERE = "it was not on the device when its process died"
WELL = Outcome("succeeded", ("a",), ("a",))


def run_of(job_id: str, waits: float, *, detail: str = ELSEWHERE) -> list[Event]:
    """A job that is claimed, reaped, claimed again after so many seconds, and finished."""
    return [
        Event(job_id, "claim", "running", None, 0.0),
        Event(job_id, "reap", "queued", detail, 10.0),
        Event(job_id, "claim", "running", None, 10.0 + waits),
        Event(job_id, "finish", "succeeded", None, 20.0 + waits),
    ]


def test_S38_what_was_taken_back_waits_until_its_next_claim() -> None:
    events = [*run_of("one", 2.0), *run_of("other", 4.0, detail=ON_DEVICE)]
    kills = kills_of([WELL, WELL], events, num_kills=1, start_to_claim_seconds=[9.0, 3.0])
    assert (kills.num_reaped, kills.num_quarantined) == (2, 1)
    assert kills.reap_to_claim_seconds == [2.0, 4.0]
    assert not list(failures(kills))
    lines = list(table(kills))
    assert "| reap to claim, p50 / p90 / p99 | 2.0 s / 4.0 s / 4.0 s |" in lines
    assert "| worker start to first claim, p50 / max | 3.0 s / 9.0 s |" in lines


def test_S38_a_bar_that_is_missed_is_said() -> None:
    lost, differing = Outcome("failed", (), ("a",)), Outcome("succeeded", ("a",), ("b",))
    end = Event("one", "finish", "succeeded", None, 99.0)
    events = [*run_of("one", 46.0), end]
    kills = kills_of([lost, differing, WELL], events, num_kills=1, start_to_claim_seconds=[])
    assert list(failures(kills)) == [
        "lost: 1",
        "doubled: 1",
        "differing: 1",
        "reap to claim p99 46.0 s, bar 45 s",
    ]


def test_S38_a_run_without_a_victim_shows_nothing() -> None:
    kills = kills_of([WELL], [], num_kills=0, start_to_claim_seconds=[])
    assert list(failures(kills)) == ["no job was held by a worker that was killed: nothing is shown"]
