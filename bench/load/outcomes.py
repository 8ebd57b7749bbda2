"""What became of each request of a run. Everything but `succeeded` is a miss; none is left out.

Owns the columns of `requests.csv`. It computes no figure and knows no service.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from bench.load.trace import Fields, Form, images_of

Kind = Literal["succeeded", "failed", "refused", "wrong", "lost", "unfinished", "unsent"]
"""`failed`: the job ended without images. `refused`: the service did not accept it. `wrong`: an image is
missing or is not the one that the job names. `lost`: no answer came, or an error of the server in place of
the image. `unfinished`: it had not ended when the run did. `unsent`: the load generator could not send it."""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Outcome:
    """What became of one request. Times are seconds from the start of the run.

    `ended_seconds` is when the client knew that the job had ended, or that nothing more would come of the
    request; where it could not wait for that (not `is_waited`), when the job ended by the clock of the
    service. `download_seconds` is from then until all images were here and had the right hashes. `cost` is an
    amount and its currency.
    """

    request: Fields
    form: Form
    due_seconds: float
    sent_seconds: float
    kind: Kind
    ended_seconds: float | None = None
    detail: str = ""
    is_waited: bool = True
    download_seconds: float | None = None
    num_images: int = 0
    num_bytes: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    cost: tuple[float, str] | None = None
    job_id: str = ""
    tier: str = ""
    worker: str = ""
    sha256: tuple[str, ...] = ()

    @property
    def send_lag_seconds(self) -> float:
        """How late the load generator was."""
        return self.sent_seconds - self.due_seconds

    @property
    def latency_seconds(self) -> float | None:
        """From when the request was due until its job had ended; None for a miss."""
        if self.kind != "succeeded" or self.ended_seconds is None:
            return None
        return self.ended_seconds - self.due_seconds


PARAMETERS = ("width", "height", "num_inference_steps", "guidance_scale", "lane", "num_images", "seed")
STAGES = ("queued", "waiting", "encoding", "denoising", "decoding", "file", "upload", "device")
"""Those of a job's timings, in seconds, that have a column."""


def row_of(outcome: Outcome) -> dict[str, Any]:
    """The columns of `requests.csv`; the prompt is counted in words and not repeated."""
    request, timings = outcome.request, outcome.timings
    return {
        "due_seconds": outcome.due_seconds,
        "send_lag_seconds": round(outcome.send_lag_seconds, 6),
        "ended_seconds": outcome.ended_seconds,
        "latency_seconds": outcome.latency_seconds,
        "download_seconds": outcome.download_seconds,
        "kind": outcome.kind,
        "detail": outcome.detail,
        "form": outcome.form,
        "is_waited": outcome.is_waited,
        "tier": outcome.tier,
        "worker": outcome.worker,
        "job_id": outcome.job_id,
        "prompt_words": len(str(request["prompt"]).split()),
        **{name: request.get(name) for name in PARAMETERS},
        "num_images": images_of(request),
        **{f"{stage}_seconds": timings.get(f"{stage}_seconds") for stage in STAGES},
        "mean_step_batch": timings.get("mean_step_batch"),
        "cost": outcome.cost and outcome.cost[0],
        "sha256": " ".join(outcome.sha256),
    }


def write(outcomes: Iterable[Outcome], path: Path) -> None:
    """Write `requests.csv`, a line a request."""
    rows = [row_of(one) for one in outcomes]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
