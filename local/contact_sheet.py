"""Draws a contact sheet: many images in a grid, each with its caption under it.

Knows nothing of where the images come from.
"""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL = 208
CAPTION_LINES = 4
LINE_HEIGHT = 14
MARGIN = 12
NUM_COLUMNS = 6


def draw_contact_sheet(pictures: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """One RGB image with every picture at its own size, centred in its cell, above its caption."""
    num_rows = -(-len(pictures) // NUM_COLUMNS)
    cell_height = CELL + CAPTION_LINES * LINE_HEIGHT + MARGIN
    size = (NUM_COLUMNS * (CELL + MARGIN) + MARGIN, num_rows * cell_height + MARGIN)
    sheet = Image.new("RGB", size, "#f4f1ea")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for index, (picture, caption) in enumerate(pictures):
        left = MARGIN + index % NUM_COLUMNS * (CELL + MARGIN)
        top = MARGIN + index // NUM_COLUMNS * cell_height
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        lines = textwrap.wrap(caption, width=36)[:CAPTION_LINES]
        for row, line in enumerate(lines):
            width = pen.textlength(line, font=font)
            pen.text((left + (CELL - width) / 2, top + CELL + 4 + row * LINE_HEIGHT), line, "#333333", font)
    return sheet
