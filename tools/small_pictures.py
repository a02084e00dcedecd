"""Redraw the pictures saved in notebooks with at most 256 colours, where that makes them smaller.

    python tools/small_pictures.py                         # notebooks of more than half a mebibyte
    python tools/small_pictures.py nbs/05_views/08_raw.ipynb

Spectrograms look like noise, which PNG cannot pack; a palette takes a third of the bytes and looks the same.
Text, sizes and cells stay as they are.
"""
import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image
from shared import ROOT


def smaller(data):
    "The same picture as base64 text, with a palette where that is smaller and nothing in it is transparent."
    raw = base64.b64decode(data)
    picture = Image.open(io.BytesIO(raw)).convert("RGBA")
    if picture.getextrema()[3][0] < 255:
        return data
    packed = io.BytesIO()
    colours = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(packed, "png", optimize=True)
    return base64.b64encode(packed.getvalue()).decode() if len(packed.getvalue()) < .9 * len(raw) else data


def shrink(path):
    "Shrink one notebook's pictures in place: (bytes before, bytes after)."
    before = path.stat().st_size
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = smaller("".join(output["data"]["image/png"]))
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return before, path.stat().st_size


if __name__ == "__main__":
    books = [Path(p) for p in sys.argv[1:]] or [p for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
                                                if p.stat().st_size > 2**19]
    for book in books:
        print("{}: {:,} -> {:,} bytes".format(book, *shrink(book)))
