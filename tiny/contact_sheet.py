"""Draws a contact sheet: many images in a grid, each with its caption and a note under it.

It does not know where the images come from, nor what the notes mean.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 208
CAPTION_LINES = 4
NOTE_LINES = 4
LINE_HEIGHT = 14
LINE_CHARACTERS = 36
MARGIN = 12
NUM_COLUMNS = 6
INK = "#333333"


@dataclass(frozen=True)
class Captioned:
    """One picture of the sheet; `note_colour` is any colour that Pillow accepts."""

    picture: Image.Image
    caption: str
    note: str = ""
    note_colour: str = INK


def draw_contact_sheet(*groups: Sequence[Captioned]) -> Image.Image:
    """Draw one RGB image with every picture unscaled and centred in its cell, above its caption and note.

    Each group begins a new row.
    """
    cells = list(_placed(groups))
    num_rows = max((place // NUM_COLUMNS + 1 for place, _ in cells), default=0)
    cell_height = CELL + (CAPTION_LINES + NOTE_LINES) * LINE_HEIGHT + MARGIN
    size = (NUM_COLUMNS * (CELL + MARGIN) + MARGIN, num_rows * cell_height + MARGIN)
    sheet = Image.new("RGB", size, "#f4f1ea")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for index, shown in cells:
        left = MARGIN + index % NUM_COLUMNS * (CELL + MARGIN)
        top = MARGIN + index // NUM_COLUMNS * cell_height
        picture = shown.picture
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        lines = [(line, INK) for line in _lines(shown.caption, CAPTION_LINES)]
        lines += [(line, shown.note_colour) for line in _lines(shown.note, NOTE_LINES)]
        for row, (line, colour) in enumerate(lines):
            width = pen.textlength(line, font=font)
            pen.text((left + (CELL - width) / 2, top + CELL + 4 + row * LINE_HEIGHT), line, colour, font)
    return sheet


def _placed(groups: Sequence[Sequence[Captioned]]) -> Iterator[tuple[int, Captioned]]:
    """Yield each picture with the number of its cell, counted row by row."""
    first = 0
    for group in groups:
        yield from enumerate(group, first)
        first += -(-len(group) // NUM_COLUMNS) * NUM_COLUMNS


def _lines(text: str, limit: int) -> list[str]:
    return textwrap.wrap(text, width=LINE_CHARACTERS, max_lines=limit, placeholder=" ...")
