"""Tensors stay in one piece while a step batch stays the same, and follow whoever leaves it."""

import pytest
import torch

from engine.company import Company
from engine.request import SchedulerSpec
from tests.unit.engine.test_sampling import tables_of
from tests.unit.engine.trajectories import Walker, walk


def walkers(count: int, scheduler: str = "ddim") -> list[Walker]:
    tables = tables_of("epsilon")
    return [Walker(tables.table(SchedulerSpec(scheduler), 10 + seed), seed) for seed in range(count)]  # type: ignore[arg-type]


def test_a_step_batch_that_stays_the_same_is_not_gathered_again() -> None:
    members = walkers(3)
    company = Company.of(members)
    walk(members)
    assert Company.of(members) is company
    assert Company.of(tuple(members)) is company


def test_whoever_leaves_takes_the_latents_of_its_last_step_along() -> None:
    members = walkers(4)
    walk(members)
    rows = [member.latents.clone() for member in members]
    company = Company.of([members[2], members[0]])
    assert torch.equal(company.latents, torch.cat([rows[2], rows[0]]))
    assert torch.equal(members[3].latents, rows[3])


def test_another_order_is_another_company() -> None:
    members = walkers(2)
    company = Company.of(members)
    turned = Company.of(members[::-1])
    assert turned is not company
    assert torch.equal(turned.latents, company.latents.flip(0))


def test_a_company_that_lost_a_member_is_not_taken_up_again_when_it_comes_back() -> None:
    """What that member did elsewhere in between counts."""
    members = walkers(2)
    walk(members)
    walk(members[:1])
    latents = [member.latents.clone() for member in members]
    assert torch.equal(Company.of(members).latents, torch.cat(latents))


def test_history_follows_its_row_past_members_who_have_none() -> None:
    multistep, other = walkers(2, "dpmpp_2m"), walkers(1)
    walk(multistep)
    history = multistep[1].company.history
    assert history is not None
    joined = Company.of([*other, multistep[1]])
    assert joined.history is not None
    assert torch.equal(joined.history[1], history[1])


@pytest.mark.parametrize(
    "spec", [SchedulerSpec("euler_ancestral"), SchedulerSpec("lcm"), SchedulerSpec("ddim", eta=1.0)], ids=str
)
def test_noise_is_the_same_however_the_model_lays_out_its_output(spec: SchedulerSpec) -> None:
    """A channels_last model's latents would take its layout, until somebody else joined the step batch."""
    table = tables_of("epsilon").table(spec, 6)
    plain, other = Walker(table, 3), Walker(table, 3)
    for _ in range(3):
        walk([plain])
        walk([other], torch.channels_last)
        assert torch.equal(plain.latents, other.latents)
        assert other.latents.is_contiguous()


def test_a_failed_step_can_be_taken_again_by_the_same_company() -> None:
    """It is prepared twice and committed once: scalars and noise are those of the one step."""
    tried, once = walkers(2, "euler"), walkers(2, "euler")
    for _ in range(3):
        Company.of(tried).sampler_step(tried).scale(Company.of(tried).latents)
        walk(tried)
        walk(once)
    for one, other in zip(tried, once, strict=True):
        assert torch.equal(one.latents, other.latents)
