"""The promises of prices and tags: exact decimal costs, no price is not zero, clear errors."""

from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from catalogue.accounting import Cost, Prices, amount_text, check_tag
from catalogue.catalogue import SettingsError, load_catalogue
from settings import ROOT


def test_a_cost_is_the_share_of_an_hour() -> None:
    prices = Prices(per_hour={"NVIDIA H200": 3.6, "cpu": 0.05})
    gpu = prices.of("NVIDIA H200", is_cpu=False)
    assert gpu is not None
    assert gpu.cost_of(2.5) == Cost(Decimal("0.0025"), "USD")
    assert gpu.cost_of(0.0) == Cost(Decimal(0), "USD")


def test_a_cost_is_rounded_to_a_billionth_and_sums_of_costs_are_exact() -> None:
    price = Prices(currency="EUR", per_hour={"cpu": 0.05}).of("any", is_cpu=True)
    assert price is not None
    cost = price.cost_of(0.03)
    assert cost == Cost(Decimal("4.17e-7"), "EUR"), "0.41666… millionths"
    assert sum(cost.amount for _ in range(1000)) == Decimal("4.17e-4")


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (0.0, "0.00 USD"),
        (4.17e-7, "0.000000417 USD"),
        (1e-9, "0.000000001 USD"),
        (0.0123456, "0.0123 USD"),
        (1.0, "1.00 USD"),
        (1234.5, "1234.50 USD"),
    ],
)
def test_a_cost_that_is_shown_is_zero_only_if_nothing_is_to_pay(amount: float, said: str) -> None:
    assert amount_text(amount, "USD") == said


def test_a_cpu_has_the_price_of_its_name_else_that_of_cpus() -> None:
    prices = Prices(per_hour={"cpu": 1, "Xeon": 2})
    assert [str(price.per_hour) for name in ("Xeon", "Epyc") if (price := prices.of(name, is_cpu=True))] == [
        "2.0",
        "1.0",
    ]


def test_a_device_without_a_price_has_no_cost_rather_than_none_to_pay() -> None:
    prices = Prices(per_hour={"cpu": 1, "NVIDIA H200": 0})
    assert prices.of("NVIDIA A100", is_cpu=False) is None
    free = prices.of("NVIDIA H200", is_cpu=False)
    assert free is not None
    assert free.cost_of(5).amount == 0


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[prices]\ncurency = 'USD'", "prices.curency: Extra inputs are not permitted"),
        ("[prices]\ncurrency = 'dollar'", "prices.currency: String should match pattern"),
        ("[prices.per_hour]\ncpu = -1", "prices.per_hour.cpu: Input should be greater than or equal to 0"),
        ("[prices.per_hour]\ncpu = nan", "prices.per_hour.cpu: Input should be"),
        ("[prices.per_hour]\ncpu = inf", "prices.per_hour.cpu: Input should be"),
        ("[prices.per_hour]\ncpu = 'much'", "prices.per_hour.cpu: Input should be a valid number"),
    ],
)
def test_a_wrong_price_is_named_when_the_file_is_loaded(tmp_path: Path, table: str, said: str) -> None:
    text = (ROOT / "calotype.toml").read_text(encoding="utf-8")
    without, _, rest = text.partition("[prices]\n")
    path = tmp_path / "calotype.toml"
    path.write_text(f"{without}{table}\n[[workers]]{rest.partition('[[workers]]')[2]}", encoding="utf-8")
    with pytest.raises(SettingsError, match=said.replace("[", r"\[")):
        load_catalogue(path)


@pytest.mark.parametrize("tag", ["a", "Project.7:x_y-z", "0" * 64])
def test_a_tag_is_letters_digits_and_few_signs(tag: str) -> None:
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", "a b", "ä", "a\n", "a/b", "x" * 65])
def test_another_tag_is_refused_with_the_limit(tag: str) -> None:
    with pytest.raises(ValueError, match="limit is 64" if len(tag) > 64 else "should have only"):
        check_tag(tag)


def test_prices_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Prices().currency = "EUR"  # type: ignore[misc]
