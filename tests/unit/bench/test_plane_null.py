"""The parts of the null worker do nothing, as fast as they can, and answer as the real ones do."""

from bench.plane.null import NullBlobs, NullEngine
from bench.plane.picture import PIXELS, SIDE
from bench.workload import mixed_requests


def test_the_null_engine_draws_at_once_and_the_null_store_keeps_nothing() -> None:
    (request,) = mixed_requests(1, 128, seed=1)
    begun: list[bool] = []
    handle = NullEngine({}, {}).submit(request, before_first_step=lambda: begun.append(True))
    assert handle.future.done()
    assert handle.future.result().pixels.shape == PIXELS.shape == (SIDE, SIDE, 3)
    assert begun == [True], "an isolated job is marked before it runs"
    store = NullBlobs(
        endpoint="http://127.0.0.1:9",
        public_endpoint="",
        region="r",
        access_key="a",
        secret_key="s",
        bucket="b",
    )
    assert store.put("k", b"four", content_type="image/png", budget_seconds=1).num_bytes == 4
