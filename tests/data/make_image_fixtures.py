#!/usr/bin/env python3
"""Writes the small pictures of tests/data/images/ and pixels.txt, what Pillow reads from them.

Development only (needs Pillow and numpy):  python3 tests/data/make_image_fixtures.py
The pictures are synthetic and belong to this project. A line of pixels.txt is: file channels width height
tolerance hex, where the tolerance is 0 for PNG and 3 for JPEG (two decoders round differently).
"""
import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

OUT = pathlib.Path(__file__).with_name("images")
WIDTH, HEIGHT = 20, 12


def base():
    """A smooth ramp with a bright corner, different under every flip and turn."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green, blue = 30 + x * 9, 40 + y * 14, 200 - x * 4 - y * 5
    pixels = np.stack([red, green, blue], axis=2).astype(np.uint8)
    pixels[:4, :6] = (250, 240, 20)
    return Image.fromarray(pixels)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour_type, raw, interlace=0, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
            + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


def interlaced(pixels):
    raw = b""
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4),
                           (1, 0, 2, 2), (0, 1, 1, 2)):
        part = pixels[y0::dy, x0::dx]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    return png(pixels.shape[1], pixels.shape[0], 8, 2, raw, interlace=1)


def exif(orientation, little=True):
    order, mark = ("<", b"II") if little else (">", b"MM")
    return (mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 1)
            + struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack(order + "I", 0))


# How to store a picture so that the orientation makes it upright again.
STORED = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
          4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
          6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}


def main():
    OUT.mkdir(exist_ok=True)
    lines = []

    def add(name, data, tolerance=None, expected=None):
        (OUT / name).write_bytes(data)
        image = Image.open(io.BytesIO(data))
        upright = expected if expected is not None else ImageOps.exif_transpose(image)
        if tolerance is None:
            tolerance = 3 if name.endswith(".jpg") else 0
        for channels, mode in ((3, "RGB"), (1, "L")):
            pixels = upright.convert("RGB").convert(mode) if upright.mode != "L" else upright.convert(mode)
            lines.append(f"{name} {channels} {pixels.width} {pixels.height} {tolerance} "
                         + pixels.tobytes().hex())

    def save(image, kind, **options):
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    rgb = base()
    grey = rgb.convert("L")
    add("rgb.png", save(rgb, "PNG"))
    add("grey.png", save(grey, "PNG"))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)))
    add("rgba.png", save(alpha, "PNG"), expected=Image.fromarray(np.asarray(alpha)[:, :, :3].copy()))
    both = np.stack([np.asarray(grey), np.asarray(alpha)[:, :, 3]], axis=2)
    add("grey_alpha.png", save(Image.fromarray(both, "LA"), "PNG"), expected=grey)
    palette = rgb.quantize(16)
    add("palette.png", save(palette, "PNG"), expected=palette.convert("RGB"))
    add("palette_transparent.png", save(palette, "PNG", transparency=3), expected=palette.convert("RGB"))
    add("one_bit.png", save(grey.convert("1"), "PNG"), expected=grey.convert("1").convert("L"))
    deep = np.asarray(grey).astype(np.uint16) * 256 + 199
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    add("grey16.png", png(WIDTH, HEIGHT, 16, 0, raw), expected=grey)
    deep = np.asarray(rgb).astype(np.uint16) * 256 + 130
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    add("rgb16.png", png(WIDTH, HEIGHT, 16, 2, raw), expected=rgb)
    add("interlaced.png", interlaced(np.asarray(rgb)))
    animation = [rgb, rgb.transpose(Image.Transpose.ROTATE_180)]
    add("animated.png", save(animation[0], "PNG", save_all=True, append_images=animation[1:]), expected=rgb)

    add("rgb.jpg", save(rgb, "JPEG", quality=95, subsampling=0))
    add("subsampled.jpg", save(rgb, "JPEG", quality=90, subsampling=2))
    add("progressive.jpg", save(rgb, "JPEG", quality=95, progressive=True, subsampling=0))
    add("restart.jpg", save(rgb, "JPEG", quality=95, subsampling=0, restart_marker_blocks=1))
    add("grey.jpg", save(grey, "JPEG", quality=95))
    add("cmyk.jpg", save(rgb.convert("CMYK"), "JPEG", quality=95))
    for orientation, how in STORED.items():
        stored = rgb if how is None else rgb.transpose(how)
        tag = exif(orientation, little=orientation % 2 == 0)
        data = np.asarray(stored)
        raw = b"".join(b"\0" + row.tobytes() for row in data)
        add(f"exif{orientation}.png",
            png(stored.width, stored.height, 8, 2, raw, extra=chunk(b"eXIf", tag)), expected=rgb)
        jpeg = save(stored, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0" + tag)
        add(f"exif{orientation}.jpg", jpeg)
        assert ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg))).size == (WIDTH, HEIGHT)

    # Refused ones: a bomb by its header, a bomb by its compressed data, one that is half there.
    (OUT / "bomb_size.png").write_bytes(png(16000, 16000, 8, 2, b"\0" * 64))
    (OUT / "bomb_data.png").write_bytes(png(8, 8, 8, 2, b"\0" * (4 << 20)))
    short = b"".join(b"\0" + row.tobytes() for row in np.asarray(rgb)[:6])
    (OUT / "short_data.png").write_bytes(png(WIDTH, HEIGHT, 8, 2, short))
    (OUT / "pixels.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
