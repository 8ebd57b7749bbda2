"""A worker that paints instead of drawing."""

import time

from engine.loading.load import LoadedModels
from logs import configure_logs
from settings import Settings, load_settings
from tasks.worker import WorkerOptions, WorkerParts, run_worker
from tests.chaos.crashes import Crasher
from tests.chaos.mutants import MUTANTS
from tests.chaos.painting import PaintingEngine, painting_model
from tests.chaos.program import Start


def serve(start: Start, crasher: Crasher) -> int:
    """Serve all tiers until SIGTERM."""
    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    options = WorkerOptions(
        device="cpu:0",
        tiers=start.tiers or tuple(tier.name for tier in settings.catalogue.tiers),
        num_threads=1,
        ready_file=start.ready_file,
    )

    def before_step() -> None:
        crasher.reach("step")
        time.sleep(start.step_seconds)

    def load(settings: Settings, _options: WorkerOptions) -> LoadedModels:
        [model] = settings.catalogue.models
        limits = {tier.max_pixels: tier.max_step_batch_rows for tier in model.tiers}
        found = painting_model(before_step)
        if start.mutant:
            MUTANTS[start.mutant](found)
        return LoadedModels({model.name: found}, {model.name: limits}, "exact")

    return run_worker(settings, options, WorkerParts(load=load, engine=PaintingEngine))
