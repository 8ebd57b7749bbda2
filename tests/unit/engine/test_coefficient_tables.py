"""Which tables there are, which are refused, and what a row is asked for."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from engine.errors import LoadError, RequestInvalid
from engine.request import SCHEDULERS, SchedulerSpec, scheduler_named
from engine.sampling import CoefficientTables

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def diffusion(**config: Any) -> CoefficientTables:
    return CoefficientTables(DDIMScheduler(**config))


def flow(**config: Any) -> CoefficientTables:
    return CoefficientTables(FlowMatchEulerDiscreteScheduler(**config), "own")


def test_table_is_expanded_once_for_a_scheduler_and_a_number_of_steps() -> None:
    tables = diffusion()
    assert tables.table(SchedulerSpec(), 20) is tables.table(SchedulerSpec(), 20)
    assert tables.table(SchedulerSpec(), 20) is not tables.table(SchedulerSpec("euler"), 20)
    assert tables.table(SchedulerSpec("euler"), 20) is not tables.table(scheduler_named("euler_karras"), 20)


def test_what_no_scheduler_can_do_is_refused() -> None:
    tables = diffusion(
        timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    with pytest.raises(RequestInvalid, match="1001 is above 1000"):
        tables.table(SchedulerSpec(), 1001)
    with pytest.raises(RequestInvalid, match="51 is above 50"):
        tables.table(SchedulerSpec("lcm"), 51)
    with pytest.raises(RequestInvalid, match="no finite steps"):
        tables.table(SchedulerSpec(eta=1.0), 6)
    with pytest.raises(RequestInvalid, match="predicts the sample"):
        diffusion(prediction_type="sample").table(SchedulerSpec("euler_ancestral"), 4)
    with pytest.raises(LoadError, match="prediction_type"):
        diffusion(prediction_type="image")
    with pytest.raises(LoadError, match="thresholding"):
        diffusion(thresholding=True)


def test_a_scheduler_of_another_kind_of_model_is_refused() -> None:
    even = CoefficientTables(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "even")
    for name in SCHEDULERS.keys() - {"flow_match_euler"}:
        with pytest.raises(RequestInvalid, match="is not for this kind"):
            even.table(scheduler_named(name), 4)
    with pytest.raises(RequestInvalid, match="follows from the resolution"):
        even.table(SchedulerSpec("flow_match_euler", shift=2.0), 4)
    with pytest.raises(RequestInvalid, match="follows from the resolution"):
        flow(use_dynamic_shifting=True).table(SchedulerSpec("dpmpp_2m"), 4)
    with pytest.raises(RequestInvalid, match="no Karras sigmas"):
        flow().table(scheduler_named("dpmpp_2m_karras"), 4)
    with pytest.raises(RequestInvalid, match="no spacing"):
        flow().table(SchedulerSpec("dpmpp_2m", spacing="trailing"), 4)
    with pytest.raises(RequestInvalid, match="euler is not for this kind"):
        flow().table(SchedulerSpec("euler"), 4)
    with pytest.raises(RequestInvalid, match="not for this kind"):
        diffusion().table(SchedulerSpec("flow_match_euler"), 4)
    with pytest.raises(RequestInvalid, match="not trained by flow matching"):
        diffusion().table(SchedulerSpec("dpmpp_2m", shift=2.0), 4)
    with pytest.raises(LoadError, match="draws noise"):
        flow(stochastic_sampling=True)


def test_order_and_noise_follow_the_step() -> None:
    """DPM++ 2M looks back between its first and its last step; LCM draws before its last, Euler a. always."""
    tables = diffusion(clip_sample=False)
    multistep = tables.table(SchedulerSpec("dpmpp_2m"), 5).updates
    assert [update.order for update in multistep] == [1, 2, 2, 2, 1]
    assert [update.is_stochastic for update in tables.table(SchedulerSpec("lcm"), 3).updates] == [
        True,
        True,
        False,
    ]
    assert all(update.is_stochastic for update in tables.table(SchedulerSpec("euler_ancestral"), 3).updates)
    assert not any(update.is_stochastic for update in tables.table(SchedulerSpec("ddim"), 3).updates)


def test_no_coefficient_is_infinite_where_h_is() -> None:
    """The last step goes to zero noise: lambda is infinite there, and first-order rows never meet it."""
    for name in ("dpmpp_2m", "dpmpp_2m_karras"):
        assert torch.isfinite(diffusion().table(scheduler_named(name), 20).coefficients).all()


def test_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(RequestInvalid, match=r"^scheduler: 'magic' is not one of default, ddim, "):
        scheduler_named("magic")
