#!/usr/bin/env python3
"""Writes transform_golden.txt: CRC-32 of what torchvision and Pillow make of small pictures.

Development only (needs torchvision, Pillow, numpy):  python3 tests/data/make_transform_golden.py
A line is: operation argument argument picture width height channels crc. The pictures come from the
integer formula of make_resize_golden.py; "smooth" ones are colour ramps, which keep histograms uneven.
"""
import pathlib
import random
import zlib

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as F

from make_resize_golden import picture


def make(case, width, height, channels):
    if case % 3 == 0:
        y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
        pixels = (40 + (x * (3 + c) + y * (5 - c)) * (case + 1) // 7 % 171).astype(np.uint8)
    else:
        pixels = picture(case, width, height, channels)
    return Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])


def main():
    np.seterr(over="ignore")
    torch.set_num_threads(1)
    rng = random.Random(7)
    lines = []

    def emit(name, a, b, case, image, result):
        width, height = image.size
        crc = zlib.crc32(result.tobytes())
        channels = len(image.getbands())
        lines.append(f"{name} {a!r} {b!r} {case} {width} {height} {channels} {crc}")

    for case in range(60):
        channels = 1 if case % 4 == 3 else 3
        image = make(case, rng.randint(1, 70), rng.randint(1, 70), channels)
        for name, low, high in (("brightness", 0, 2.5), ("contrast", 0, 2.5), ("saturation", 0, 2.5),
                                ("sharpness", 0, 2.5), ("hue", -0.5, 0.5)):
            factor = rng.uniform(low, high)
            emit(name, factor, 0, case, image, getattr(F, "adjust_" + name)(image, factor))
        angle = rng.uniform(-400, 400)
        emit("rotate", angle, 0, case, image, F.rotate(image, angle))
        policy = autoaugment.RandAugment()
        space = policy._augmentation_space(31, (image.size[1], image.size[0]))
        for index, (name, (magnitudes, signed)) in enumerate(space.items()):
            for magnitude in (rng.randint(0, 30), rng.randint(0, 30)):
                negative = signed and rng.random() < 0.5
                value = float(magnitudes[magnitude].item()) if magnitudes.ndim > 0 else 0.0
                result = autoaugment._apply_op(image, name, -value if negative else value,
                                               InterpolationMode.NEAREST, None)
                emit(f"rand{index}", magnitude, int(negative), case, image, result)
    for case in range(300):
        channels = 1 if case % 4 == 3 else 3
        image = make(case, rng.randint(1, 150), rng.randint(1, 150), channels)
        crop = rng.randint(1, 60)
        size = rng.choice([crop, crop + rng.randint(0, 9), max(1, crop - rng.randint(0, 9))])
        cubic = case & 1
        mode = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
        view = transforms.Compose([transforms.Resize(size, mode), transforms.CenterCrop(crop)])
        emit("cubic" if cubic else "linear", size, crop, case, image, view(image))
    pathlib.Path(__file__).with_name("transform_golden.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
