"""The `calotype plan` command: from profiles, traffic and goals to a fleet, by simulation.

It runs nothing and needs no service: profiles are files, and published ones ship with this program.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalogue.catalogue import Catalogue
from cli.jobs import connect
from cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_REFUSED,
    EXIT_USAGE,
    AsJson,
    DataDir,
    Key,
    Url,
    fail,
    needing_bench,
    note,
    print_json,
    print_table,
    say,
)
from settings import Settings, load_settings

if TYPE_CHECKING:
    from bench.plan.outcome import Tried
    from bench.plan.request import PlanRequest
    from bench.plan.search import Plan

MAX_RECORDED = 1000
"""The newest jobs of a service from which its traffic is read."""
RATE_SHARES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25)
"""Of the planned rate, at which the recommended fleet is simulated for the plot."""

OF_PLOTS = ("matplotlib", "bench.charts")
"""The modules that an installation without plots lacks, such as the API image."""

planning = typer.Typer()


@planning.command()
def plan(
    path: Annotated[
        Path | None, typer.Argument(help="plan.toml, or JSON: traffic, goals and devices.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Images that arrive in a second.")] = None,
    within: Annotated[
        float | None, typer.Option(help="Seconds in which 95 % of interactive jobs are to end.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="The most that the devices may cost in a month.")
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            min=0, help="Without PATH: of a device and hour. Default: that of calotype.toml, or none."
        ),
    ] = None,
    max_devices: Annotated[
        int | None, typer.Option(help="Without PATH: at most so many devices, up to 5000. Default: 64.")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Without PATH: TIER=NAME, a published profile or a file; may be repeated."),
    ] = None,
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Without PATH: plan for the jobs of a service.")
    ] = False,
    published: Annotated[bool, typer.Option("--published", help="Only list the published profiles.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write calotype.toml, plan.json and plots here.")] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest fleet that meets the goals: devices, tiers of workers, row caps, latency and cost."""
    with needing_bench("a checkout, or the API image"):
        from bench.plan.profiles import PlanError
        from bench.plan.search import find_plan

    if published:
        _show_published(as_json=as_json)
        return
    if out is not None and out.exists() and not out.is_dir():
        fail(f"--out: {out} is not a folder", EXIT_USAGE)
    if path is None and rate is within is budget is None and not recorded:
        fail("there is no goal: give --rate, --within, --budget, or --recorded", EXIT_USAGE)
    if rate is not None and rate <= 0:
        fail(f"--rate: {rate:g} is not above 0", EXIT_USAGE)
    settings = load_settings(data_dir=data_dir)
    try:
        if path is None:
            traffic = _recorded(data_dir, url, api_key) if recorded else _one_job(settings.catalogue, profile)
            offer = _offer(traffic, profile, price, max_devices, settings)
            request = _from_options(traffic, within, budget, offer, settings.catalogue.prices.currency)
        else:
            _refuse_beside_a_file(
                {
                    "--price": price is not None,
                    "--max-devices": max_devices is not None,
                    "--profile": bool(profile),
                    "--recorded": recorded,
                }
            )
            request = _from_file(path, within, budget)
        if rate is not None:
            request = _at_rate(request, rate)
        found = find_plan(
            request,
            _profiles(request, settings),
            {tier.name: tier.max_step_batch_rows for tier in settings.catalogue.tiers},
            say=note,
        )
        written = _write(found, settings, out) if out is not None else []
    except PlanError as error:
        fail(str(error), EXIT_USAGE)
    _show(found, written, as_json=as_json)
    if found.recommended is None:
        limit = request.devices[0].max_count if path is None and found.is_short else None
        more = "" if limit is None else f"; more devices than --max-devices, {limit}, might meet them"
        fail(f"no fleet meets the goals: see the reasons above{more}", EXIT_REFUSED)


def _refuse_beside_a_file(is_given: Mapping[str, bool]) -> None:
    for option, given in is_given.items():
        if given:
            fail(f"{option}: the file says it; leave this option out", EXIT_USAGE)


def _one_job(catalogue: Catalogue, profile: Sequence[str] | None) -> dict[str, Any]:
    """A traffic of the default jobs of the tiers that `--profile` names, or else of the smallest tier."""
    named = [one.partition("=")[0] for one in profile or []]
    tiers = [tier for tier in catalogue.tiers if tier.name in named] or list(catalogue.tiers[:1])
    classes = []
    for tier in tiers:
        model = catalogue.model(tier.model)
        assert model is not None
        classes.append(
            {
                "tier": tier.name,
                "width": tier.default_width,
                "height": tier.default_height,
                "num_inference_steps": model.default_num_inference_steps,
                "guided_share": float(model.default_guidance_scale > 1),
            }
        )
    return {"jobs_per_second": 1.0, "jobs": classes}


def _recorded(data_dir: Path, url: str, api_key: str) -> dict[str, Any]:
    """The traffic of the newest jobs of a service."""
    from bench.plan.traffic import seen_traffic

    with connect(url, api_key, data_dir) as client:
        seen = seen_traffic([job.raw for job in islice(client.jobs(), MAX_RECORDED)])
    for one in seen.notes:
        note(f"--recorded: {one}")
    return seen.traffic.model_dump(mode="json")


def _offer(
    traffic: dict[str, Any],
    profile: Sequence[str] | None,
    price: float | None,
    max_devices: int | None,
    settings: Settings,
) -> dict[str, Any]:
    """The one kind of device that the options name, as in a file."""
    from bench.plan.profiles import PlanError
    from bench.plan.request import MAX_DEVICES

    profiles = {job["tier"]: "measured" for job in traffic["jobs"]}
    for one in profile or []:
        tier, _, name = one.partition("=")
        if not name or tier not in profiles:
            known = ", ".join(profiles)
            raise PlanError(f"--profile: {one!r} is not TIER=NAME of a tier of the traffic: {known}")
        profiles[tier] = name
    if price is None:
        price = _configured_price(profiles, settings)
    offer = {"name": "device", "price_per_hour": price, "profiles": profiles}
    if max_devices is None:
        return offer
    if not 1 <= max_devices <= MAX_DEVICES:
        raise PlanError(f"--max-devices: {max_devices} is not between 1 and {MAX_DEVICES}")
    return offer | {"max_count": max_devices}


def _configured_price(profiles: Mapping[str, str], settings: Settings) -> float:
    """The price of an hour that `calotype.toml` has for the device of these profiles; 0 without one."""
    from bench.plan.profiles import PlanError, profile_of

    prices = settings.catalogue.prices
    found = {
        tier: profile_of(name, tier, settings.profiles_dir).price_per_hour(prices)
        for tier, name in profiles.items()
    }
    if len(set(found.values())) > 1:
        each = ", ".join(f"{tier} {'none' if one is None else f'{one:g}'}" for tier, one in found.items())
        raise PlanError(f"--price: the devices of the profiles have different prices ({each}): give one")
    price = next(iter(found.values()))
    if price is None:
        return 0.0
    note(f"a device costs {price:g} {prices.currency} an hour, by [prices] of {settings.config.name}")
    return price


def _from_options(
    traffic: dict[str, Any],
    within: float | None,
    budget: float | None,
    offer: dict[str, Any],
    currency: str,
) -> "PlanRequest":
    from bench.plan.request import checked_request

    document = {
        "traffic": traffic,
        "goals": {"p95_seconds": within, "max_price_per_month": budget},
        "devices": [offer],
        "currency": currency,
    }
    return checked_request(document, "the options")


def _from_file(path: Path, within: float | None, budget: float | None) -> "PlanRequest":
    from bench.plan.request import checked_request, read_request

    document = read_request(path).model_dump(mode="json")
    goals = {"p95_seconds": within, "max_price_per_month": budget}
    document["goals"] |= {name: value for name, value in goals.items() if value is not None}
    return checked_request(document, str(path))


def _at_rate(request: "PlanRequest", rate: float) -> "PlanRequest":
    traffic = request.traffic
    scaled = traffic.at(traffic.jobs_per_second * rate / traffic.images_per_second)
    return request.model_copy(update={"traffic": scaled})


def _profiles(request: "PlanRequest", settings: Settings) -> dict[tuple[str, str], Any]:
    from bench.plan.profiles import profile_of

    return {
        (device.name, tier): profile_of(name, tier, settings.profiles_dir)
        for device in request.devices
        for tier, name in device.profiles.items()
        if tier in request.traffic.tiers
    }


def _write(found: "Plan", settings: Settings, folder: Path) -> list[Path]:
    from bench.plan.outcome import simulate
    from bench.plan.recommendation import as_json, configurations, write_configurations

    folder.mkdir(parents=True, exist_ok=True)
    document = as_json(found)
    rates, paths = [], []
    if found.recommended is not None:
        fleet, traffic = found.recommended.fleet, found.request.traffic
        base = settings.config.read_text(encoding="utf-8")
        paths = write_configurations(configurations(fleet, base), folder)
        for share in RATE_SHARES:
            p50, p95, p99 = simulate(fleet, traffic.at(share * traffic.jobs_per_second), seed=1).seconds
            rates.append(
                {
                    "images_per_second": share * traffic.images_per_second,
                    "p50_seconds": p50,
                    "p95_seconds": p95,
                    "p99_seconds": p99,
                }
            )
    file = folder / "plan.json"
    file.write_text(json.dumps({**document, "rates": rates}, indent=1) + "\n", encoding="utf-8")
    paths.append(file)
    try:
        from bench.plan.charts import draw
    except ModuleNotFoundError as error:
        if error.name not in OF_PLOTS:
            raise
        note(f"no plots: {error.name} is not installed")
        return paths
    return [*paths, *draw(document, rates, folder)]


def _show(found: "Plan", written: Sequence[Path], *, as_json: bool) -> None:
    from bench.plan.recommendation import as_json as document_of
    from bench.plan.recommendation import reasons

    if as_json:
        print_json(document_of(found))
        return
    currency = found.request.currency
    chosen = found.recommended
    shown = found.front if chosen is None or chosen in found.front else [chosen, *found.front]
    print_table(
        (
            *("", "devices", "p50 s", "p95 s", "p99 s", "busy", "rows", "images/s"),
            *(f"{currency}/month", f"{currency}/image", "fleet"),
        ),
        [_line(one, is_chosen=one is chosen) for one in shown],
    )
    say("")
    for reason in reasons(found):
        say(reason)
    for file in written:
        say(f"written: {file}")


def _line(one: "Tried", *, is_chosen: bool) -> tuple[object, ...]:
    p50, p95, p99 = (f"{seconds:.3g}" for seconds in one.seconds)
    return (
        *("plan" if is_chosen else "", one.fleet.num_workers, p50, p95, p99),
        *(f"{one.busy_share:.0%}", f"{one.mean_rows:.1f}", f"{one.images_per_second:.3g}"),
        *(f"{one.fleet.price_per_month:.0f}", f"{one.price_per_image:.2g}", one.fleet.as_words()),
    )


def _show_published(*, as_json: bool) -> None:
    from bench.plan.profiles import published
    from bench.plan.recommendation import verdict

    found = published().values()
    if as_json:
        names = ("name", "device", "model", "source", "url", "date", "assumed")
        print_json([{name: getattr(one, name) for name in names} for one in found])
        return
    print_table(
        ("name", "device", "model", "size", "rows: seconds/step", "date", "source"),
        [
            (
                *(one.name, one.device, one.model, f"{one.profile.key.width}x{one.profile.key.height}"),
                ", ".join(f"{step.num_rows}: {step.seconds:.3g}" for step in one.profile.steps),
                *(one.date, f"{one.source}; {one.url}"),
            )
            for one in found
        ],
    )
    say("")
    for one in found:
        say(verdict(one.name, one))
        for assumed in one.assumed:
            say(f"  assumed: {assumed}")
