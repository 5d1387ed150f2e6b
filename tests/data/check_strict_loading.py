#!/usr/bin/env python3
"""Loads files that graft wrote into torchvision's and efficientnet_lite_pytorch's models, strict=True.
Run at development time:

    python tests/data/check_strict_loading.py FILE.safetensors...
"""
import json
import sys

import torchvision
from efficientnet_lite_pytorch import EfficientNet
from safetensors import safe_open
from safetensors.torch import load_file


def model_for(architecture, classes):
    if architecture.startswith("efficientnet_lite"):
        return EfficientNet.from_name(f"efficientnet-lite{architecture[-1]}", num_classes=classes)
    if architecture.startswith("mobilenet_v2"):
        width = float(architecture.partition("_x")[2] or 1)
        return torchvision.models.mobilenet_v2(num_classes=classes, width_mult=width)
    return getattr(torchvision.models, architecture)(num_classes=classes)


def main():
    for path in sys.argv[1:]:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        architecture, classes = metadata["graft.architecture"], json.loads(metadata["graft.classes"])
        state = load_file(path)
        model = model_for(architecture, classes or 1000)
        if classes == 0:
            model.classifier = model.classifier[:1]  # features only
        model.load_state_dict(state, strict=True)
        print(f"{path}: {architecture}, {classes} classes, {len(state)} tensors: strict=True loads")


if __name__ == "__main__":
    main()
