#!/usr/bin/env python3
"""Writes resize_golden.bin: the CRC-32 of Pillow's result for 2,000 random resizes with both filters.

Development only (needs Pillow and numpy):  python3 tests/data/make_resize_golden.py
tests/data_resize_test.cpp makes the same sizes and pictures from the same integer formulas, so the file
holds nothing but one little-endian uint32 a case and filter (bilinear, bicubic).
"""
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

CASES = 2000


def mix(v):
    v = (v ^ (v >> np.uint32(16))) * np.uint32(0x7FEB352D)
    v = (v ^ (v >> np.uint32(15))) * np.uint32(0x846CA68B)
    return v ^ (v >> np.uint32(16))


def draw(case, which):
    return int(mix(np.array([case * 16 + which], dtype=np.uint32))[0])


def side(case, which):
    word = draw(case, which)
    # Mostly moderate, one in sixteen large, one in sixteen tiny.
    kind = word & 15
    limit = 600 if kind == 0 else 5 if kind == 1 else 160
    return 1 + (word >> 4) % limit


def picture(case, width, height, channels):
    y, x, c = np.meshgrid(np.arange(height, dtype=np.uint32), np.arange(width, dtype=np.uint32),
                          np.arange(channels, dtype=np.uint32), indexing="ij")
    v = mix(x * np.uint32(0x9E3779B1) + y * np.uint32(0x85EBCA77) + c * np.uint32(0xC2B2AE3D)
            + np.uint32(case))
    p = (v & np.uint32(255)).astype(np.uint8)
    # Every other picture is black and white, so that bicubic overshoots and clips.
    return np.where(p >= 128, np.uint8(255), np.uint8(0)) if case & 1 else p


def main():
    np.seterr(over="ignore")
    words = []
    for case in range(CASES):
        sizes = [side(case, i) for i in range(4)]
        # One case in sixteen keeps a side, where Pillow skips that pass.
        keep = draw(case, 5) & 31
        if keep == 0:
            sizes[2] = sizes[0]
        if keep == 1:
            sizes[3] = sizes[1]
        channels = 3 if draw(case, 4) & 1 else 1
        pixels = picture(case, sizes[0], sizes[1], channels)
        image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
            words.append(zlib.crc32(image.resize((sizes[2], sizes[3]), resample).tobytes()))
    out = pathlib.Path(__file__).with_name("resize_golden.bin")
    out.write_bytes(struct.pack("<%dI" % len(words), *words))


if __name__ == "__main__":
    main()
