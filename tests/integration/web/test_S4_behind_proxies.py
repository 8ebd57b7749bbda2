"""S4: behind nginx and Caddy, as `deploy/proxy` configures them, no request is lost to an idle connection.

The deadlines are shortened, the proxy's to stay shorter than ours, as they are shipped.
"""

import io
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import trustme

from client.calotype.calls import MAX_BATCH_SECONDS, SECONDS_A_ROW
from local.endpoints import Embedded
from local.ports import choose_ports
from settings import ROOT, Settings
from tests.integration.web.conftest import Draw
from tests.integration.web.proxies import CADDY, NAME, NGINX, program_of, proxied, trusting
from tests.integration.web.test_S4_pooled_clients import NUM_REQUESTS, Request, mixed
from tests.served import served

NUM_CLIENTS, NUM_PAUSES = 8, 6
PROXY_SECONDS, OUR_SECONDS = 0.5, 1.0
PAUSES = (0.4, 0.5, 0.6, 0.9, 1.0, 1.1)
SOON = 60.0


@dataclass(frozen=True)
class Behind:
    """The API behind a proxy, and where its metrics are."""

    url: str
    authority: trustme.CA
    metrics_port: int

    def client(self, **headers: str) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.url, headers=headers, verify=trusting(self.authority), trust_env=False, timeout=SOON
        )

    def num_cut(self) -> dict[str, float]:
        """How many connections the API ended since their clients kept it waiting, by phase."""
        text = httpx2.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith("calotype_connections_cut_total{")]
        return {line.split('"')[1]: float(line.split()[1]) for line in lines}


@pytest.fixture(scope="module", params=[NGINX, CADDY])
def behind(
    request: pytest.FixtureRequest, migrated: Embedded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Behind]:
    kind: str = request.param
    program_of(kind)  # before the API is started for it
    metrics_port = choose_ports(["metrics"])["metrics"]
    authority = trustme.CA()
    settings = {
        "CALOTYPE_METRICS_PORT": str(metrics_port),
        "CALOTYPE_IDLE_SECONDS": str(OUR_SECONDS),
        "CALOTYPE_PUBLIC_URL": "",
    }
    shorter = {"60s": "500ms"}
    with (
        served(migrated.environment_of("api") | settings) as server,
        proxied(kind, tmp_path_factory.mktemp(kind), authority, server.port, shorter) as port,
    ):
        yield Behind(f"https://{NAME}:{port}", authority, metrics_port)


def test_S4_a_thousand_requests_through_a_proxy_with_pauses_and_no_bad_gateway(
    behind: Behind, api_key: str
) -> None:
    # A proxy has bounds of its own for headers.
    wanted = [request for request in mixed(api_key) if request.status != 431]
    parts = [wanted[number::NUM_CLIENTS] for number in range(NUM_CLIENTS)]

    def ask(part: list[Request]) -> list[tuple[int, str, Request]]:
        wrong: list[tuple[int, str, Request]] = []
        chance = random.Random(len(part))
        pauses = set(range(0, len(part), len(part) // NUM_PAUSES))
        with behind.client() as client:
            for number, request in enumerate(part):
                if number in pauses:
                    threading.Event().wait(chance.choice(PAUSES) + chance.uniform(-0.02, 0.02))
                answer = client.request(
                    request.method, request.path, headers=request.headers, content=request.body()
                )
                if answer.status_code != request.status:
                    wrong.append((answer.status_code, answer.text[:200], request))
        return wrong

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        assert [wrong for part in pool.map(ask, parts) for wrong in part] == []
    assert len(wanted) > NUM_REQUESTS * 0.99
    # The proxy ended every idle connection, so no request could meet the end of one.
    assert behind.num_cut().get("idle", 0) == 0


def test_S4_a_proxy_passes_on_who_asks_and_what_is_too_large_and_streams(
    behind: Behind, api_key: str, draw: Draw
) -> None:
    with behind.client(Authorization=f"Bearer {api_key}") as client:
        made = client.post("/v1/jobs", json={"prompt": "a red heart"}, headers={"Prefer": "wait=0.2"})
        assert made.status_code == 202
        assert made.headers["Preference-Applied"] == "wait=0.2"
        assert made.headers["Location"].startswith("https://localhost"), "clients came by https"
        draw(made.json()["id"])
        assert client.head(f"/v1/jobs/{made.json()['id']}/images/0").status_code == 302
        too_large = client.post("/v1/jobs", json={"prompt": "a" * 100_000})
        assert (too_large.status_code, too_large.json()["code"]) == (413, "body_too_large")
        rows = b"prompt\n" + b"".join(b"heart %d\n" % number for number in range(3000))
        batch = client.post("/v1/batches", files={"file": ("a.csv", io.BytesIO(rows), "text/csv")})
        assert batch.status_code == 202
        with client.stream("GET", f"/v1/batches/{batch.json()['id']}/results.csv") as answer:
            assert sum(piece.count(b"\n") for piece in answer.iter_bytes()) == 3001
        assert client.delete(f"/v1/batches/{batch.json()['id']}").status_code == 200
        upload = {"Content-Type": "multipart/form-data; boundary=x"}
        assert client.post("/v1/batches", content=b"a" * 12_000_000, headers=upload).status_code == 413


@pytest.mark.parametrize("kind", [NGINX, CADDY])
def test_S4_below_a_prefix_the_links_of_answers_lead_through_the_proxy(
    migrated: Embedded, tmp_path: Path, api_key: str, kind: str
) -> None:
    program_of(kind)
    authority = trustme.CA()
    prefixed = {
        NGINX: {"location / {": "location /draw/ {", "http://calotype;": "http://calotype/;"},
        CADDY: {"reverse_proxy 127": "handle_path /draw/* {\n\treverse_proxy 127", "\t}\n}\n": "\t}\n}\n}\n"},
    }
    # Said as clients reach it, at the port of this test.
    public = "https://localhost:{port}/draw"
    port = choose_ports(["public"])["public"]
    settings = {"CALOTYPE_PUBLIC_URL": public.format(port=port)}
    with (
        served(migrated.environment_of("api") | settings) as server,
        proxied(kind, tmp_path, authority, server.port, prefixed[kind]) as at,
        httpx2.Client(verify=trusting(authority), trust_env=False, timeout=SOON) as client,
    ):
        headers = {"Authorization": f"Bearer {api_key}"}
        made = client.post(
            f"https://localhost:{at}/draw/v1/jobs", json={"prompt": "a red heart"}, headers=headers
        )
        assert made.status_code == 202
        location = made.headers["Location"]
        assert location.startswith(f"{settings['CALOTYPE_PUBLIC_URL']}/v1/jobs/")
        shown = client.get(location.replace(f":{port}/", f":{at}/"), headers=headers)
        assert shown.json()["id"] == made.json()["id"]


def test_S4_idle_connections_outlive_those_of_the_shipped_proxies() -> None:
    for name in ("nginx.conf", "Caddyfile"):
        assert "60s" in (ROOT / "deploy/proxy" / name).read_text()
    # Without a line of its own Caddy keeps them for two minutes, Traefik for 90 s.
    assert Settings.model_fields["idle_seconds"].default > 120


def test_the_shipped_nginx_waits_for_a_large_csv_as_long_as_the_client_does() -> None:
    found = re.search(r"proxy_read_timeout (\d+)s;", (ROOT / "deploy/proxy/nginx.conf").read_text())
    assert found
    rows = Settings.model_fields["max_csv_rows"].default * SECONDS_A_ROW
    assert (
        int(found[1]) > max(rows, MAX_BATCH_SECONDS, Settings.model_fields["max_wait_seconds"].default) + 30
    )
