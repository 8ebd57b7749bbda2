"""How long the open jobs would keep a device busy: the signal for starting and stopping workers.

Owns the conversion of work to seconds, in full step batches. It does not simulate: when a job ends is
estimated by `web.estimates.eta`.
"""

from collections.abc import Iterator, Mapping, Sequence

from catalogue.lanes import LANES
from catalogue.profile import Profile
from storage.open_work import DeviceProfile, Work


def device_seconds(
    work: Mapping[tuple[str, str], Work],
    profiles: Mapping[str, Sequence[DeviceProfile]],
    row_limits: Mapping[str, int],
) -> Iterator[tuple[tuple[str, str], float]]:
    """Seconds by tier and lane, 0 without work; a tier without a profile is left out.

    `row_limits` are the configured caps of the tiers. Devices of several kinds share the work in proportion
    to their speed: divided by the number of devices, the seconds are the time in which they all end.
    """
    for tier, of_tier in profiles.items():
        if tier in row_limits:
            for lane in LANES:
                found = work.get((tier, lane), Work())
                yield (tier, lane), _on_mean_device(found, of_tier, row_limits[tier])


def _on_mean_device(work: Work, profiles: Sequence[DeviceProfile], max_rows: int) -> float:
    seconds = [(seconds_on(work, one.profile, max_rows), max(1, one.num_workers)) for one in profiles]
    if not all(one for one, _ in seconds):
        return 0.0
    return sum(num for _, num in seconds) / sum(num / one for one, num in seconds)


def seconds_on(work: Work, profile: Profile, max_rows: int) -> float:
    """Seconds of the work alone on one device of the profile, in step batches at the cap."""
    num_rows = min(profile.max_rows, max_rows)
    seconds_per_step = profile.step_seconds(num_rows) / num_rows / profile.num_pixels
    share, num_more_rows = profile.cached_share, profile.num_guided_rows - 1
    steps = work.full_steps + share * work.cached_steps
    steps += num_more_rows * (work.guided_full_steps + share * work.guided_cached_steps)
    decode_seconds = profile.decode_seconds * work.pixels / profile.num_pixels
    return steps * seconds_per_step + decode_seconds + profile.encode_seconds * work.encodings
