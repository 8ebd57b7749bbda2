"""No webhook goes to special-purpose address space or to a port that is not listed, however it is spelled."""

import ipaddress
from collections.abc import Iterator

import pytest

from settings import Settings
from tasks.webhooks.addresses import DEFAULT_PORTS, Address, is_open
from tasks.webhooks.client import WebhookClient
from web.api.webhook_url import check_webhook_url

# The registries' entries one by one, also those within others, and what our table says in other words.
BLOCKS = (
    "0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32",
    "192.0.0.170/32", "192.0.0.171/32", "192.0.0.192/32", "192.0.2.0/24", "192.31.196.0/24",
    "192.52.193.0/24", "192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "255.255.255.255/32", "168.63.129.16/32",
    "::/128", "::1/128", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48",
    "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32", "2001:1::1/128", "2001:1::2/128",
    "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48", "2001:10::/28", "2001:20::/28",
    "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8", "2d00::/8", "2e00::/7", "3000::/4", "::/8", "200::/7", "400::/6",
    "800::/5", "1000::/4", "4000::/3", "6000::/3", "8000::/3", "a000::/3", "c000::/3", "e000::/4",
    "f000::/5", "f800::/6", "fe00::/9", "fd00:ec2::254/128",
)  # fmt: skip
CASE_S37 = ("192.0.0.192", "::ffff:0:127.0.0.1", "4000::1", "e000::1")
OPEN = (
    "1.0.0.0", "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.215.14", "100.63.255.255",
    "100.128.0.0", "126.255.255.255", "128.0.0.0", "168.63.129.15", "168.63.129.17", "169.253.255.255",
    "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0", "192.167.255.255",
    "198.17.255.255", "198.20.0.0", "223.255.255.255", "2001:200::", "2001:4860:4860::8888", "2003::1",
    "2400::1", "2600::1", "2606:4700::1111", "2620:4f:7fff::1", "2620:4f:8001::1", "2a00:1450::1", "2c00::1",
)  # fmt: skip


def addresses_of(block: str) -> list[Address]:
    """The first, the middle and the last address."""
    network = ipaddress.ip_network(block)
    return [network[0], network[network.num_addresses // 2], network[-1]]


def spellings(address: Address) -> Iterator[str]:
    """As a person, a resolver and an attacker write it; of IPv4 also every IPv6 form that carries it."""
    yield str(address)
    if isinstance(address, ipaddress.IPv6Address):
        tail = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        yield address.exploded
        yield address.exploded.upper()
        yield f"{address.exploded[:30]}{tail}"
        return
    high, low = divmod(int(address), 1 << 16)
    for prefix in ("::", "::ffff:", "0:0:0:0:0:FFFF:", "::ffff:0:", "64:ff9b::", "64:ff9b:1::"):
        yield f"{prefix}{address}"
    yield f"::ffff:{high:x}:{low:x}"
    yield f"2002:{high:x}:{low:x}::1"
    yield f"2001:0:{high:x}:{low:x}::1"
    yield f"2a00:1450::5efe:{address}"
    yield f"2a00:1450::200:5efe:{address}"


VECTORS = {
    block: sorted({text for address in addresses_of(block) for text in spellings(address)})
    for block in (*BLOCKS, *CASE_S37)
}


def url(address: str) -> str:
    return f"https://[{address}]/hook" if ":" in address else f"https://{address}/hook"


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """What the look-up of each name gives."""
    return {}


@pytest.fixture(scope="module")
def client(answers: dict[str, list[str]]) -> WebhookClient:
    """A sender that reaches nothing: what it does not refuse has no address."""
    return WebhookClient(timeout_seconds=10, resolve=lambda host, _port: answers.get(host, []))


def test_S37_there_are_enough_vectors() -> None:
    assert len({text for texts in VECTORS.values() for text in texts}) >= 300


@pytest.mark.parametrize("block", VECTORS)
def test_S37_no_special_address_is_accepted_at_submission(block: str) -> None:
    for text in VECTORS[block]:
        assert not is_open(ipaddress.ip_address(text)), text
        with pytest.raises(ValueError, match="private or reserved"):
            check_webhook_url(url(text))


@pytest.mark.parametrize("block", VECTORS)
def test_S37_no_special_address_is_sent_to(
    block: str, client: WebhookClient, answers: dict[str, list[str]]
) -> None:
    for text in VECTORS[block]:
        # One bad address refuses the name, wherever it stands among good ones.
        answers["rebound.example"] = ["93.184.215.14", text]
        answer = client.post("https://rebound.example/hook", {}, b"{}")
        assert answer.error_code == "address_refused", text


@pytest.mark.parametrize("address", OPEN)
def test_S37_what_lies_beside_a_special_block_is_open(address: str) -> None:
    assert is_open(ipaddress.ip_address(address))
    assert check_webhook_url(url(address)) == url(address)


def test_S37_an_address_of_one_link_alone_is_closed() -> None:
    assert not is_open(ipaddress.ip_address("2606:4700::1111%eth0"))


def test_a_network_that_was_opened_is_open_and_its_neighbours_are_not() -> None:
    allowed = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/64")]
    assert is_open(ipaddress.ip_address("10.1.2.3"), allowed)
    assert is_open(ipaddress.ip_address("fd00::7"), allowed)
    assert not is_open(ipaddress.ip_address("10.2.0.1"), allowed)
    assert not is_open(ipaddress.ip_address("::ffff:10.1.2.3"), allowed)


@pytest.mark.parametrize("port", [1, 22, 25, 80, 444, 6379, 8000, 65535])
@pytest.mark.parametrize("host", ["hooks.example.com", "8.8.8.8", "[2606:4700::1111]"])
def test_S37_another_port_is_refused_by_its_number_and_the_list(
    host: str, port: int, client: WebhookClient
) -> None:
    with pytest.raises(ValueError, match=f"^port {port} is not accepted; accepted are: 443, 8443$"):
        check_webhook_url(f"https://{host}:{port}/hook")
    # A row of before, too: without a look-up, since nothing can make it right.
    answer = client.post(f"https://{host}:{port}/hook", {}, b"{}")
    assert answer.error_code == "port_refused"
    assert answer.error_detail == f"port {port} is not accepted; accepted are: 443, 8443"


@pytest.mark.parametrize("written", ["", ":", ":443", ":00443", ":8443"])
def test_S37_the_listed_ports_are_accepted_however_they_are_written(
    written: str, client: WebhookClient
) -> None:
    sent_to = f"https://hooks.example.com{written}/hook"
    assert check_webhook_url(sent_to) == sent_to
    assert client.post(sent_to, {}, b"{}").error_code == "name_not_found"


def test_S37_the_list_of_ports_is_a_setting() -> None:
    assert Settings().webhook_ports == DEFAULT_PORTS
    assert check_webhook_url("https://8.8.8.8:9443/", ports=[9443]) == "https://8.8.8.8:9443/"
    with pytest.raises(ValueError, match="port 443 is not accepted; accepted are: 9443"):
        check_webhook_url("https://8.8.8.8/", ports=[9443])


def test_S37_any_port_of_an_opened_network_is_accepted_and_none_besides() -> None:
    allowed = [ipaddress.ip_network("10.1.0.0/16")]
    for inside in ("https://10.1.2.3:9000/", "https://inside.example:9000/"):
        assert check_webhook_url(inside, allowed) == inside
    with pytest.raises(ValueError, match="port 9000"):
        check_webhook_url("https://8.8.8.8:9000/", allowed)
    # A name is accepted with any port then, and refused when it leads elsewhere.
    client = WebhookClient(
        timeout_seconds=10, allowed_networks=allowed, resolve=lambda *_: ["10.1.2.3", "93.184.215.14"]
    )
    assert client.post("https://inside.example:9000/", {}, b"{}").error_code == "port_refused"
