"""Finds out when a pipeline is loaded whether its texts can be padded without changing its images.

Compares two calls whose texts have different lengths, pads them, and compares again; the name of the pipeline
class does not matter. It does not know requests: the caller draws the images.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.exchange import Exchange
from engine.pipelines.components import is_denoiser
from engine.pipelines.parked_call import READ_FROM_ROW_0, ParkedCall, SharedTensors
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.text_padding import Fill, TextPadding, TextPlace, leaves
from engine.self_test.time_budget import TimeBudget

LENGTHS = (32, 64, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of tokens. A text is padded to the next of these at which padding changes no image."""

NUM_PASSES = 4
"""Most passes of a denoising step: two for guidance, each after one of a ControlNet."""

NAMES_OF_TEXT = ("encoder", "text", "prompt", "txt")
logger = logging.getLogger(__name__)


@torch.inference_mode()
def find_text_padding(
    exchange: Exchange,
    begin: Sequence[Callable[[], PipelineCall]],
    is_unchanged: Callable[[], bool],
    budget: TimeBudget,
) -> TextPadding | None:
    """Return how texts of this pipeline can be padded; None if they cannot be, or need not be.

    `begin` starts two calls whose texts have different lengths. If the arguments of their first step differ
    only in the length of a text, and the module takes a mask or the length of the text, the passes are
    repeated with the text padded to each of `LENGTHS`, until an output differs. Then `is_unchanged` draws
    images padded to the smallest and the largest length, and compares them with images without padding. If a
    padded call fails, or the budget is spent before an image is drawn, texts are not padded.
    """
    steps = [first_step(exchange, one) for one in begin]
    places = _places(*steps)
    if not places:
        return None
    exchange_padding = exchange.text_padding
    try:
        lengths = _lengths_that_change_nothing(exchange, places, steps, budget)
        while lengths and not budget.is_spent():
            trials = sorted({lengths[0], lengths[-1]})
            if all(_is_unchanged_at(exchange, places, length, is_unchanged) for length in trials):
                return TextPadding(places, tuple(lengths))
            lengths.pop()
    finally:
        exchange.text_padding = exchange_padding
    return None


def first_step(exchange: Exchange, begin: Callable[[], PipelineCall]) -> list[ParkedCall]:
    """Return the passes of the denoiser and its ControlNets in a call's first step."""
    call = begin()
    passes: list[ParkedCall] = []
    while call.parked is not None and call.num_steps_done == 0 and len(passes) < NUM_PASSES:
        if is_denoiser(call.parked.name):
            passes.append(call.parked)
        if exchange.run([call]):
            break  # the output is not finite
    call.end()
    return passes


def _is_unchanged_at(
    exchange: Exchange, places: tuple[TextPlace, ...], length: int, is_unchanged: Callable[[], bool]
) -> bool:
    exchange.text_padding = TextPadding(places, (length,))
    return is_unchanged()


def _places(ones: Sequence[ParkedCall], others: Sequence[ParkedCall]) -> tuple[TextPlace, ...]:
    """Return where two calls differ in the length of their texts; empty if they then share no pass."""
    if [one.name for one in ones] != [other.name for other in others]:
        return ()
    found: dict[str, list[TextPlace]] = {}
    for one, other in zip(ones, others, strict=True):
        if one.signature != other.signature and one.name not in found:
            found[one.name] = _places_in(one, other)
    places = tuple(place for of_module in found.values() for place in of_module)
    if not places:
        return ()
    padding = TextPadding(places, (max(_length(places, one) for one in (*ones, *others)),))
    is_shared = all(
        _padded(padding, one).signature == _padded(padding, other).signature
        for one, other in zip(ones, others, strict=True)
        if found.get(one.name)
    )
    return places if is_shared else ()


def _places_in(one: ParkedCall, other: ParkedCall) -> list[TextPlace]:
    """Return the places in one module, its text first; empty if an argument differs in any other way."""
    ones, others = dict(leaves(one.arguments())), dict(leaves(other.arguments()))
    if ones.keys() != others.keys():
        return []
    differing = {
        path: (value, others[path])
        for path, value in ones.items()
        if isinstance(value, Tensor)
        and isinstance(others[path], Tensor)
        and value.shape != others[path].shape
    }
    texts = [path for path, (value, _) in differing.items() if _is_text(path, value, one.num_rows)]
    lengths = _lengths_along(*differing[texts[0]]) if texts else None
    if lengths is None:
        return []
    paths = (texts[0], *(path for path in differing if path != texts[0]))
    places = [_place(one, path, differing[path], lengths[1:]) for path in paths]
    known = [place for place in places if place is not None]
    return _with_mask(one, known, ones) if len(known) == len(places) else []


def _lengths_along(one: Tensor, other: Tensor) -> tuple[int, int, int] | None:
    """Return the only dimension in which the shapes differ, and both lengths; None if there are several."""
    if one.ndim != other.ndim:
        return None
    pairs = enumerate(zip(one.shape, other.shape, strict=True))
    found = [(dimension, *sizes) for dimension, sizes in pairs if sizes[0] != sizes[1]]
    return found[0] if len(found) == 1 else None


def _place(
    call: ParkedCall, path: str, tensors: tuple[Tensor, Tensor], text_lengths: tuple[int, int]
) -> TextPlace | None:
    lengths = _lengths_along(*tensors)
    if lengths is None:
        return None
    dimension, *both = lengths
    num_others = both[0] - text_lengths[0]
    if num_others < 0 or num_others != both[1] - text_lengths[1]:
        return None
    fill: Fill
    if _is_named(path, "mask"):
        if not all(map(_is_mask, tensors)):
            return None
        fill = "mask"
    elif num_others:
        return None
    else:
        fill = "zeros" if _is_text(path, tensors[0], call.num_rows) else "continued"
    return TextPlace(call.name, path, dimension, num_others, fill)


def _with_mask(call: ParkedCall, places: list[TextPlace], by_path: Mapping[str, Any]) -> list[TextPlace]:
    """Return the places, plus a mask that the call leaves out; empty if it has neither mask nor lengths."""
    if any(place.fill == "mask" for place in places):
        return places
    missing = [path for path, value in by_path.items() if value is None and _is_named(path, "mask")]
    of_text = [path for path in missing if path.startswith(places[0].path)]
    of_text += [path for path in missing if any(part in path for part in NAMES_OF_TEXT)]
    if of_text or missing:
        return [*places, TextPlace(call.name, (of_text or missing)[0], 1, 0, "missing mask")]
    gives_lengths = any(
        _is_named(path, "len")
        and isinstance(value, Tensor)
        and value.shape == (call.num_rows,)
        and not value.is_floating_point()
        for path, value in by_path.items()
    )
    return places if gives_lengths else []


def _is_text(path: str, value: Tensor, num_rows: int) -> bool:
    return (
        value.is_floating_point()
        and value.ndim > 2
        and value.shape[0] == num_rows
        and not _is_named(path, "mask")
        and not path.partition("/")[0].endswith(READ_FROM_ROW_0)
    )


def _is_named(path: str, part: str) -> bool:
    return part in path.rpartition("/")[2]


def _is_mask(value: Tensor) -> bool:
    return value.dtype == torch.bool or bool(((value == 0) | (value == 1)).all())


def _length(places: Sequence[TextPlace], call: ParkedCall) -> int:
    text = next((place for place in places if place.module == call.name), None)
    return 0 if text is None else text.length_in(dict(leaves(call.arguments()))[text.path]) or 0


def _padded(padding: TextPadding, call: ParkedCall) -> ParkedCall:
    arguments = padding.of_call().padded(call.name, call.arguments())
    return ParkedCall(call.name, arguments, SharedTensors())


def _lengths_that_change_nothing(
    exchange: Exchange,
    places: tuple[TextPlace, ...],
    steps: Sequence[Sequence[ParkedCall]],
    budget: TimeBudget,
) -> list[int]:
    """Return the `LENGTHS`, smallest first, at which padding leaves the outputs of both steps unchanged."""
    modules = {place.module for place in places}
    passes = {(number, one.name): one for number, step in enumerate(steps) for one in reversed(step)}
    calls = [one for (_, name), one in passes.items() if name in modules]
    longest = max(_length(places, one) for step in steps for one in step)
    found: list[int] = []
    try:
        outputs = [exchange.outputs([one])[0] for one in calls]
        for length in (one for one in LENGTHS if one >= longest):
            if budget.is_spent():
                break
            padding = TextPadding(places, (length,))
            padded = [exchange.outputs([_padded(padding, one)])[0] for one in calls]
            if not all(_are_near(one, other) for one, other in zip(outputs, padded, strict=True)):
                break
            found.append(length)
    except Exception as error:  # a module may raise anything for a text that is too long
        logger.debug("texts are padded to %s: longer ones raise %s", found, type(error).__name__)
    return found


def _are_near(one: Any, other: Any) -> bool:
    """Whether two outputs agree in half of their digits; their images are compared afterwards."""
    tensors = [[leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor)] for output in (one, other)]
    if len(tensors[0]) != len(tensors[1]):
        return False
    for ours, theirs in zip(*tensors, strict=True):
        if ours.shape != theirs.shape:
            return False
        if ours.numel() and ours.is_floating_point():
            bound = torch.finfo(ours.dtype).eps ** 0.5 * ours.abs().max()
            if not bool((ours - theirs).abs().max() <= bound):
                return False
    return True
