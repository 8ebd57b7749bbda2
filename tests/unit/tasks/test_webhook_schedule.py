"""The promises of the schedule: its pauses in order, a receiver's wish within a bound, and an end."""

import ipaddress
from typing import cast

import pytest

from storage.database import Database
from storage.deliveries import DeliveryClaim
from tasks.webhook_addresses import is_open
from tasks.webhook_client import Answer, WebhookClient
from tasks.webhooks import Deliver, DeliverPlan, judge

PAUSES = (5.0, 30.0, 300.0)


def deliver(factor: float = 1.0) -> Deliver:
    plan = DeliverPlan(PAUSES, max_per_account=4, lease_seconds=30, public_url="")
    nothing = cast("Database", None), cast("WebhookClient", None)
    return Deliver(*nothing, plan, uniform=lambda low, high: low + (high - low) * factor)


def claimed(num_failures: int) -> DeliveryClaim:
    return DeliveryClaim(
        "whd", "acc", "job", None, "job.failed", "https://a", "s", None, 1, num_failures, "t"
    )


def test_each_failure_has_its_pause_and_the_last_has_none() -> None:
    pauses = [deliver(0.5).pause_after(claimed(failures), Answer(1, 500)) for failures in range(4)]
    assert pauses == [5.0, 30.0, 300.0, None]


def test_jitter_stays_within_a_tenth() -> None:
    assert deliver(0).pause_after(claimed(1), Answer(1, 500)) == pytest.approx(27)
    assert deliver(1).pause_after(claimed(1), Answer(1, 500)) == pytest.approx(33)


@pytest.mark.parametrize(
    ("status", "asked", "pause"),
    [(429, 60.0, 60.0), (503, 2.0, 5.0), (503, 1e9, 300.0), (500, 60.0, 5.0), (410, 60.0, None)],
)
def test_a_receiver_may_ask_for_patience_within_the_schedule(
    status: int, asked: float, pause: float | None
) -> None:
    answer = Answer(1, status, retry_after_seconds=asked)
    assert deliver(0.5).pause_after(claimed(0), answer) == pause


@pytest.mark.parametrize(
    ("status", "code"),
    [(200, None), (204, None), (299, None), (301, "redirect"), (304, "redirect"), (400, "http_status"),
     (410, "gone"), (500, "http_status")],
)  # fmt: skip
def test_only_a_2xx_has_delivered_it(status: int, code: str | None) -> None:
    assert judge(Answer(1, status)).error_code == code


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "168.63.129.16",
        "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.170", "192.0.2.1",
        "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.0.1", "192.175.48.1", "198.18.0.1",
        "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
        "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1",
        "64:ff9b:1::1", "100::1", "100:0:0:1::1", "2001::1", "2001:2::1", "2001:10::1", "2001:20::1",
        "2001:db8::1", "2002:7f00:1::1", "2620:4f:8000::1", "3fff::1", "5f00::1", "fc00::1",
        "fd12:3456:789a::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
    ],
)  # fmt: skip
def test_no_special_address_is_open(address: str) -> None:
    assert not is_open(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700::1111", "2a00:1450::1"]
)
def test_public_addresses_are_open(address: str) -> None:
    assert is_open(ipaddress.ip_address(address))


def test_a_network_that_was_opened_is_open_and_its_neighbours_are_not() -> None:
    allowed = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/64")]
    assert is_open(ipaddress.ip_address("10.1.2.3"), allowed)
    assert is_open(ipaddress.ip_address("fd00::7"), allowed)
    assert not is_open(ipaddress.ip_address("10.2.0.1"), allowed)
    assert not is_open(ipaddress.ip_address("::ffff:10.1.2.3"), allowed)
