"""What a run offers is drawn before it: the same seed or the same file gives the same requests."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from bench.load.arrivals import bursts_of, constant, poisson, ramp
from bench.load.mix import (
    Mix,
    MixError,
    Weighted,
    form_of,
    number,
    only,
    read_prompts,
    size_of,
    weighted,
    whole_number,
)
from bench.load.summary import class_of
from bench.load.trace import Trace, TraceError, drawn_at, read, write
from tiny.scenes import read_caption

MIX = Mix(
    sizes=weighted("128x128:3,192x192", size_of),
    steps=weighted("4,20", whole_number(1, 150)),
    guidance_scales=weighted("1,4", number),
    forms=weighted("single:4,csv:1", form_of),
    csv_rows=5,
)


def drawn(seed: int, mix: Mix = MIX, *, num: int = 200) -> Trace:
    rng = random.Random(seed)
    instants = poisson(num / 50, 50, rng)
    return drawn_at(instants, lambda: mix.draw(rng), seconds=50, warm_up_seconds=5, drawn=mix.described())


def test_one_seed_gives_one_trace_and_another_gives_another() -> None:
    assert drawn(1) == drawn(1) != drawn(2)


def test_a_trace_file_gives_the_same_requests_at_the_same_times(tmp_path: Path) -> None:
    trace = drawn(3)
    write(trace, tmp_path / "trace.jsonl")
    assert read(tmp_path / "trace.jsonl") == trace
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 1 + len(trace.arrivals)


def test_a_replay_at_another_rate_keeps_the_rhythm() -> None:
    trace = drawn(1)
    faster = trace.at_rate(2 * trace.images_per_second)
    assert faster.images_per_second == pytest.approx(2 * trace.images_per_second)
    assert [one.requests for one in faster.arrivals] == [one.requests for one in trace.arrivals]
    assert faster.arrivals[-1].due_seconds == pytest.approx(trace.arrivals[-1].due_seconds / 2)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1 is not JSON"),
        (["[]"], "line 1 is not a JSON object"),
        (['{"kind": "other"}'], "line 1 is not"),
        (["HEAD"], "no arrival"),
        (["HEAD", '{"due_seconds": 10, "requests": [{"prompt": "a"}]}'], "no arrival from 0 s to 10 s"),
        (["HEAD", '{"due_seconds": -1, "requests": [{"prompt": "a"}]}'], "line 2: due_seconds"),
        (["HEAD", '{"due_seconds": 1, "requests": []}'], "line 2: requests"),
        (["HEAD", '{"due_seconds": 1, "requests": [{"width": 1}]}'], "line 2: requests"),
        (["HEAD", '{"due_seconds": 1, "form": "fax", "requests": [{"prompt": "a"}]}'], "line 2: form"),
        (["HEAD", '{"due_seconds": 1, "requests": [{"prompt": "a"}, {"prompt": "b"}]}'], "has 2"),
        (['{"kind": "calotype-trace", "version": 1, "seconds": 5, "warm_up_seconds": 5}'], "warm_up_seconds"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_by_its_line(tmp_path: Path, lines: list[str], said: str) -> None:
    head = json.dumps({"kind": "calotype-trace", "version": 1, "seconds": 10, "warm_up_seconds": 0})
    (tmp_path / "t").write_text("\n".join(line.replace("HEAD", head) for line in lines))
    with pytest.raises(TraceError, match=said):
        read(tmp_path / "t")


def test_poisson_arrivals_have_exactly_the_rate_and_the_spread_of_poisson() -> None:
    rng = random.Random(1)
    instants = poisson(20, 1000, rng)
    assert len(instants) == 20_000
    assert instants == sorted(instants)
    a_second = Counter(int(one) for one in instants)
    counts = [a_second[second] for second in range(1000)]
    variance = sum((count - 20) ** 2 for count in counts) / 1000
    assert 17 < variance < 23, "the variance of a Poisson count is its mean"


def test_constant_arrivals_are_evenly_spaced() -> None:
    assert constant(2, 2, random.Random(1)) == [0.25, 0.75, 1.25, 1.75]


def test_bursts_arrive_together_at_the_same_mean_rate() -> None:
    instants = bursts_of(10)(5, 20, random.Random(1))
    assert len(instants) == 100
    assert set(Counter(instants).values()) == {10}


def test_a_ramp_rises_from_no_load_to_twice_its_mean_rate() -> None:
    instants = ramp(5, 100, random.Random(1))
    assert len(instants) == 500
    first, last = (sum(start <= one < start + 10 for one in instants) for start in (0, 90))
    assert first < 12
    assert last > 75
    assert max(instants) <= 100


def test_the_shares_of_a_mix_are_those_that_were_asked_for() -> None:
    rng = random.Random(1)
    arrivals = [MIX.draw(rng) for _ in range(4000)]
    forms = Counter(form for form, _ in arrivals)
    assert forms["csv"] / 4000 == pytest.approx(0.2, abs=0.02)
    assert {len(requests) for form, requests in arrivals if form == "csv"} == {5}
    requests = [one for _, found in arrivals for one in found]
    sizes = Counter((one["width"], one["height"]) for one in requests)
    assert sizes[128, 128] / len(requests) == pytest.approx(0.75, abs=0.03)
    assert MIX.images_per_arrival == pytest.approx(1.8)


def test_a_row_of_a_csv_has_no_lane() -> None:
    rng = random.Random(1)
    for form, requests in (MIX.draw(rng) for _ in range(50)):
        assert all(("lane" in one) == (form == "single") for one in requests)


def test_without_a_file_prompts_are_captions_that_the_judge_can_read() -> None:
    rng = random.Random(1)
    assert all(read_caption(one["prompt"]) for _ in range(20) for one in MIX.draw(rng)[1])


def test_prompts_have_the_lengths_that_were_asked_for() -> None:
    mix = Mix(only((64, 64)), only(4), only(1.0), prompt_words=weighted("3,40", whole_number(1, 300)))
    rng = random.Random(1)
    lengths = {len(mix.draw(rng)[1][0]["prompt"].split()) for _ in range(40)}
    assert lengths == {3, 40}


def test_prompts_of_a_file_are_lines_or_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "b.tsv").write_text("Prompt\tCategory\none, with a comma\tx\ntwo\ty\n")
    (tmp_path / "c.csv").write_text("id,prompt\n1,one\n2,two\n")
    assert read_prompts(tmp_path / "a.txt") == ("one", "two")
    assert read_prompts(tmp_path / "b.tsv") == ("one, with a comma", "two")
    assert read_prompts(tmp_path / "c.csv") == ("one", "two")
    for name, text in (("empty.txt", "\n"), ("d.csv", "id\n1\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(MixError, match="prompt"):
            read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "value_of", "said"),
    [
        ("4:x", whole_number(1, 9), "'x' is not a weight"),
        ("4:0", whole_number(1, 9), "above 0"),
        ("4:inf", whole_number(1, 9), "finite"),
        ("10", whole_number(1, 9), "from 1 to 9"),
        ("", whole_number(1, 9), "from 1 to 9"),
        ("128", size_of, "WIDTHxHEIGHT"),
        ("-1", number, "from 0 to 1000"),
        ("post", form_of, "single, csv"),
    ],
)
def test_a_mix_that_cannot_be_read_names_what_is_wrong(text: str, value_of: object, said: str) -> None:
    with pytest.raises(MixError, match=said):
        weighted(text, value_of)  # type: ignore[arg-type]


def test_a_mix_is_shown_as_it_is_read() -> None:
    text = "128x128:3,192x192:1"
    found: Weighted[tuple[int, int]] = weighted(text, size_of)
    assert str(found) == text


def test_the_classes_of_a_mix_are_all_that_it_can_draw() -> None:
    classes = {class_of(request) for request in MIX.classes()}
    assert len(MIX.classes()) == len(classes) == 8
    rng = random.Random(1)
    drawn_classes = {class_of(one) for _ in range(300) for one in MIX.draw(rng)[1]}
    assert drawn_classes == classes
