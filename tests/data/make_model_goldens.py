#!/usr/bin/env python3
"""Writes tests/data/goldens/*.json: logits, loss and every parameter's gradient of each architecture
from PyTorch in double precision, for tests/models_golden_test.cpp. Run at development time only:

    python tests/data/make_model_goldens.py [--photos LITE0.pth IMAGE...] [--steps] [ARCHITECTURE...]

Weights and inputs come from a hash of the tensor's name and the element's index, so that the test
makes the same numbers itself and only results are stored. Each gradient is stored as its 2-norm, its dot
product with a second hashed vector (any wrong element moves it), and four elements.

ReLU's derivative jumps at its kinks (ReLU6 has two): an activation closer to one than rounding error
legitimately gets another gradient in f32 (one such among a million moved upstream gradients by 1e-3).
So inputs are drawn until all activations stay away from the kinks.
"""
import argparse
import copy
import json
import pathlib

import numpy as np
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

GOLDENS = pathlib.Path(__file__).parent / "goldens"
CLASSES = 10
# In training mode rounding errors are larger: batch norm divides by the deviation of few samples.
MOST_INPUTS, ENOUGH_MARGIN = 200, {True: 8e-6, False: 2e-6}


def hashed(name, count):
    """`count` numbers in [-1, 1): FNV-1a of the name, plus the index times a constant, through
    MurmurHash3's finaliser; the top 24 bits."""
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x01000193) & 0xFFFFFFFF
    x = (np.uint64(seed) + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)
    mask = np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x85EBCA6B)) & mask
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(0xC2B2AE35)) & mask
    x ^= x >> np.uint64(16)
    return (x >> np.uint64(8)).astype(np.float64) * 2.0**-23 - 1.0


def weight_value(name, shape, damped):
    count = int(np.prod(shape, dtype=np.int64))
    u = hashed(name, count)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) == 4:
        value = u * (np.sqrt(3.0) * np.sqrt(2.0 / (count // shape[0])))
    elif len(shape) == 2:
        value = u * (np.sqrt(3.0) * np.sqrt(1.0 / (count // shape[0])))
    elif name.endswith(".weight"):  # batch norm; smaller at the end of a residual branch
        value = 1.0 + 0.25 * u
        for suffix, factor in damped.items():
            value = value * factor if name.endswith(suffix) else value
    elif name.endswith("running_var"):
        value = 1.0 + 0.25 * u
    else:
        value = 0.2 * u
    return value.astype(np.float32).reshape(shape)


class SmallCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
        self.relu, self.pool, self.fc = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(128, CLASSES)

    def forward(self, x):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = self.pool(self.relu(norm(conv(x))))
        return self.fc(x.mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc = nn.Linear(3 * 784, 256), nn.Linear(256, 256), nn.Linear(256, CLASSES)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.fc(self.relu(self.fc2(self.relu(self.fc1(x.flatten(1))))))


def resnet(depth):
    return lambda size: getattr(torchvision.models, f"resnet{depth}")(num_classes=CLASSES)


def lite(variant):
    # The package pads for a nominal image size; image_size makes it ours.
    return lambda size: EfficientNet.from_name(
        f"efficientnet-lite{variant}", num_classes=CLASSES, image_size=size, dropout_rate=0.0,
        drop_connect_rate=0.0)


def mobilenet(width):
    return lambda size: torchvision.models.mobilenet_v2(num_classes=CLASSES, width_mult=width, dropout=0.0)


# name: builder, image size, batch, train mode, and by which factor the weights of the norms that end a
# residual branch are smaller (so that 50 blocks do not add up to huge logits)
MODELS = {
    "resnet18": (resnet(18), 64, 4, True, {"bn2.weight": 0.4}),
    "resnet34": (resnet(34), 64, 2, False, {"bn2.weight": 0.4}),
    "resnet50": (resnet(50), 64, 2, False, {"bn3.weight": 0.25}),
    "resnet101": (resnet(101), 64, 2, False, {"bn3.weight": 0.25}),
    "resnet152": (resnet(152), 64, 2, False, {"bn3.weight": 0.25}),
    "mobilenet_v2": (mobilenet(1.0), 64, 2, False, {"conv.3.weight": 0.6}),
    "mobilenet_v2_x0.5": (mobilenet(0.5), 96, 2, False, {"conv.3.weight": 0.6}),
    "efficientnet_lite0": (lite(0), 64, 2, False, {"_bn2.weight": 0.6}),
    "efficientnet_lite1": (lite(1), 96, 2, False, {"_bn2.weight": 0.6}),
    "efficientnet_lite2": (lite(2), 75, 2, False, {"_bn2.weight": 0.6}),
    "efficientnet_lite3": (lite(3), 64, 2, False, {"_bn2.weight": 0.6}),
    "efficientnet_lite4": (lite(4), 64, 2, False, {"_bn2.weight": 0.6}),
    "small_cnn": (lambda size: SmallCnn(), 32, 4, True, {}),
    "mlp": (lambda size: Mlp(), 28, 4, False, {}),
}


def summary(name, tensor):
    flat = tensor.detach().double().flatten().numpy()
    picks = [flat[k * (flat.size - 1) // 3] for k in range(4)]
    numbers = [np.linalg.norm(flat), flat @ hashed("projection of " + name, flat.size), *picks]
    return [float(f"{number:.9g}") for number in numbers]


def input_of(seed, batch, size):
    x = np.sqrt(3.0) * hashed(f"input {seed}", batch * 3 * size * size)
    return torch.from_numpy(x.astype(np.float32).reshape(batch, 3, size, size)).double()


def margin_of(model, x):
    """The smallest distance of a pre-activation to a kink, over the root mean square of its tensor."""
    margins, hooks = [], []

    def look(module, inputs):
        z = inputs[0].detach()
        scale = z.square().mean().sqrt()
        distance = z.abs().min()
        if isinstance(module, nn.ReLU6):
            distance = torch.minimum(distance, (z - 6).abs().min())
        margins.append((distance / scale).item())

    for module in model.modules():
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            hooks.append(module.register_forward_pre_hook(look))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return min(margins)


def fill(model, damped):
    state = model.state_dict()
    model.load_state_dict(
        {name: torch.from_numpy(np.array(weight_value(name, tuple(value.shape), damped)))
         for name, value in state.items()})


def write_golden(name):
    build, size, batch, train, damped = MODELS[name]
    model = build(size).train(train)
    fill(model, damped)
    margins = {}
    for seed in range(MOST_INPUTS):
        margins[seed] = margin_of(model, input_of(seed, batch, size).float())
        if margins[seed] > ENOUGH_MARGIN[train]:
            break
    seed = max(margins, key=margins.get)
    model.double()
    fill(model, damped)  # margin_of moved the running statistics

    logits = model(input_of(seed, batch, size))
    target = torch.tensor([(7 * i + 3) % CLASSES for i in range(batch)])
    loss = nn.functional.cross_entropy(logits, target)
    loss.backward()
    golden = {
        "architecture": name, "torch": torch.__version__, "size": size, "batch": batch, "train": train,
        "damped": damped, "seed": seed, "margin": float(f"{margins[seed]:.2g}"), "classes": CLASSES,
        "logits": [float(f"{value:.9g}") for value in logits.detach().flatten().tolist()],
        "loss": loss.item(),
        "gradients": {key: summary(key, p.grad) for key, p in model.named_parameters()},
    }
    if train:
        golden["buffers"] = {key: summary(key, b) for key, b in model.named_buffers()
                             if not key.endswith("num_batches_tracked")}
    lines = json.dumps(golden).replace(', "', ',\n"').replace("{", "{\n").replace("}", "\n}")
    (GOLDENS / f"{name}.json").write_text(lines + "\n")
    print(f"{name}: logits up to {logits.abs().max():.3g}, seed {seed}, margin {margins[seed]:.2g}", flush=True)


def take_steps(name, size, batch, seed, steps, options):
    """Losses along training steps on one batch, the model behind the last, and the smallest margin."""
    build, _, _, _, damped = MODELS[name]
    model = build(size).train()
    fill(model, damped)
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), **options)
    x, losses, margins = input_of(seed, batch, size), [], []
    target = torch.tensor([(7 * i + 3) % CLASSES for i in range(batch)])
    for step in range(steps + 1):
        margins.append(margin_of(copy.deepcopy(model), x))
        loss = nn.functional.cross_entropy(model(x), target)
        losses.append(loss.item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses, model, min(margins[:steps])


def write_steps_golden(name="resnet18", size=32, batch=8, steps=2):
    """Of a network whose steps do not magnify rounding errors, as those of MobileNetV2 do."""
    options = {"lr": 0.005, "momentum": 0.9, "weight_decay": 0.01}
    margins = {}
    for seed in range(20):
        losses, model, margins[seed] = take_steps(name, size, batch, seed, steps, options)
        if margins[seed] > ENOUGH_MARGIN[True]:
            break
    seed = max(margins, key=margins.get)
    losses, model, margin = take_steps(name, size, batch, seed, steps, options)
    golden = {
        "architecture": name, "torch": torch.__version__, "size": size, "batch": batch,
        "damped": MODELS[name][4], "seed": seed, "margin": float(f"{margin:.2g}"), "classes": CLASSES,
        **options, "losses": losses,
        "parameters": {key: summary(key, p) for key, p in model.named_parameters()},
    }
    lines = json.dumps(golden).replace(', "', ',\n"').replace("{", "{\n").replace("}", "\n}")
    (GOLDENS / f"{name}_steps.json").write_text(lines + "\n")
    print(f"{name} in steps: {losses}, seed {seed}, margin {margin:.2g}")


def write_photo_golden(weights, images):
    """Logits of the published EfficientNet-Lite0 on photographs, in double precision."""
    from PIL import Image

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    model.double().eval()
    golden = {}
    for path in map(pathlib.Path, images):
        image = Image.open(path).convert("RGB")
        width, height = image.size
        short = min(width, height)
        # Short side 256, the centre 224 x 224 with offsets rounded down.
        size = (256, int(256 * height / width)) if width == short else (int(256 * width / height), 256)
        left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
        image = image.resize(size, Image.BICUBIC).crop((left, top, left + 224, top + 224))
        x = (torch.from_numpy(np.asarray(image).astype(np.float64)) - 127) / 128
        with torch.no_grad():
            logits = model(x.permute(2, 0, 1)[None])[0]
        golden[path.name] = [float(f"{value:.9g}") for value in logits.tolist()]
        top = logits.softmax(0).topk(3)
        print(path.name, [(int(i), round(float(p), 4)) for p, i in zip(*top)])
    text = json.dumps(golden).replace("], ", "],\n")
    (GOLDENS / "efficientnet_lite0_photos.json").write_text(text + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--steps", action="store_true", help="training steps of ResNet-18")
    parser.add_argument("--photos", nargs="+", metavar="FILE", help="weights, then images")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    GOLDENS.mkdir(exist_ok=True)
    if arguments.photos:
        write_photo_golden(arguments.photos[0], arguments.photos[1:])
    if arguments.steps:
        write_steps_golden()
    if arguments.architectures or not (arguments.photos or arguments.steps):
        for name in arguments.architectures or MODELS:
            write_golden(name)


if __name__ == "__main__":
    main()
