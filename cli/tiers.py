"""The `calotype tiers` commands, for operators: they use the database as its owner does."""

from collections.abc import Sequence
from typing import Annotated

import typer

from cli.terminal import DEFAULT_DATA_DIR, EXIT_USAGE, AsJson, DataDir, fail, out, print_json, print_table

tiers = typer.Typer(no_args_is_help=True)
Named = Annotated[list[str] | None, typer.Argument(metavar="[TIER]...", help="Tiers of calotype.toml.")]
All = Annotated[bool, typer.Option("--all", help="Every tier.")]


@tiers.command("list")
def list_tiers(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List the tiers, with the jobs that wait and which tiers are paused."""
    from local.access import open_database
    from settings import load_settings
    from storage.dispatches import waiting
    from storage.paused_tiers import paused_tiers
    from storage.workers import num_live_workers

    settings = load_settings()
    with open_database(data_dir) as db:
        paused, queued = paused_tiers(db), waiting(db)
        live = num_live_workers(db, settings.worker_alive_seconds)
    found = [
        {
            "name": tier.name,
            "model": tier.model,
            "num_live_workers": live[tier.name],
            "interactive": queued.get((tier.name, "interactive"), 0),
            "bulk": queued.get((tier.name, "bulk"), 0),
            "paused_at": str(paused[tier.name].paused_at) if tier.name in paused else None,
            "reason": paused[tier.name].reason if tier.name in paused else None,
        }
        for tier in settings.catalogue.tiers
    ]
    if as_json:
        print_json(found)
        return
    names = ("tier", "model", "live workers", "interactive", "bulk", "paused", "reason")
    print_table(names, [tuple("" if one is None else one for one in tier.values()) for tier in found])


@tiers.command("pause")
def pause_tiers(
    tier: Named = None,
    every: All = False,
    reason: Annotated[str, typer.Option(help="Shown to those whose jobs wait.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Let no job of these tiers start. New jobs are accepted and wait; those that run go on."""
    from local.access import open_database
    from storage.paused_tiers import pause

    chosen = _chosen(tier or [], every=every)
    with open_database(data_dir) as db:
        pause(db, chosen, reason=reason)
    _show(chosen, "paused", as_json=as_json)


@tiers.command("resume")
def resume_tiers(
    tier: Named = None, every: All = False, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False
) -> None:
    """Let jobs of these tiers start again."""
    from local.access import open_database
    from storage.paused_tiers import resume

    chosen = _chosen(tier or [], every=every)
    with open_database(data_dir) as db:
        resume(db, chosen)
    _show(chosen, "served", as_json=as_json)


def _chosen(names: Sequence[str], *, every: bool) -> list[str]:
    """The tiers that are meant; ends the command if calotype.toml has none of that name."""
    from settings import load_settings

    if bool(names) == every:
        fail("name tiers, or give --all", code=EXIT_USAGE)
    known = [tier.name for tier in load_settings().catalogue.tiers]
    if unknown := [name for name in names if name not in known]:
        fail(f"there is no tier {unknown[0]!r}; there is: {', '.join(known)}", code=EXIT_USAGE)
    return known if every else list(names)


def _show(chosen: Sequence[str], state: str, *, as_json: bool) -> None:
    if as_json:
        print_json([{"name": name, "state": state} for name in chosen])
        return
    for name in chosen:
        out.print(f"{name} is {state}", markup=False)
