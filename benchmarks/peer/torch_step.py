"""Times one training or inference step of the same model in PyTorch.

The counterpart of benchmarks/step.cpp: same architecture, batch, image size, loss and optimizer, with
what makes PyTorch fast: channels_last, fused SGD, and torch.compile on request (on a GPU with CUDA
graphs).
"""

import argparse
import json
import resource
import statistics
import time


def build(name, weights):
    """A public PyTorch implementation of an architecture, without dropout, and its weights by name."""
    if name.startswith("lite"):
        import timm

        model = timm.create_model(f"tf_efficientnet_lite{name[4:]}", pretrained=False)
        names = timm_names(model)
        weights = {names[key.rsplit(".", 1)[0]] + "." + key.rsplit(".", 1)[1]: value
                   for key, value in weights.items()}
        return model, weights
    import torchvision

    make = getattr(torchvision.models, {"mobilenetv2": "mobilenet_v2"}.get(name, name))
    return make(weights=None, **({"dropout": 0.0} if name == "mobilenetv2" else {})), weights


def timm_names(model):
    """efficientnet_lite_pytorch's module names, which graft's weights carry -> timm's."""
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
             "_fc": "classifier"}
    blocks = [(f"blocks.{i}.{j}", block) for i, stage in enumerate(model.blocks)
              for j, block in enumerate(stage)]
    for number, (path, block) in enumerate(blocks):
        if hasattr(block, "conv_pwl"):
            parts = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw",
                     "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
        else:
            parts = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw",
                     "_bn2": "bn2"}
        names.update({f"_blocks.{number}.{ours}": f"{path}.{theirs}" for ours, theirs in parts.items()})
    return names


def made_up_images(torch, batch, size):
    """The same numbers as benchmarks/step.cpp."""
    index = torch.arange(batch * size * size * 3, dtype=torch.int64)
    values = (index * 48271 % 65536).to(torch.float32) / 32768.0 - 1.0
    # In memory NHWC, which is PyTorch's channels_last.
    return values.reshape(batch, size, size, 3).permute(0, 3, 1, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", required=True, help="lite0-train, resnet50-infer ...")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--weights", help="safetensors file of `step --save-weights`")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    import torch

    name, kind = args.workload.rsplit("-", 1)
    training = kind == "train"
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    # The same arithmetic on both sides: f32, not TF32 (convolutions would take it by default).
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    weights = {}
    if args.weights:
        from safetensors.torch import load_file

        weights = load_file(args.weights)
    model, weights = build(name, weights)
    if weights:
        model.load_state_dict(weights)
    model = model.to(args.device, memory_format=torch.channels_last).train(training)
    images = made_up_images(torch, args.batch, args.size).to(args.device)
    target = torch.tensor([i * 37 % 1000 for i in range(args.batch)]).to(args.device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True
    )
    mode = "reduce-overhead" if args.device == "cuda" else None
    forward = torch.compile(model, mode=mode) if args.compile else model

    def train_step():
        loss = torch.nn.functional.cross_entropy(forward(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer_step():
        with torch.inference_mode():
            return forward(images)[0, 0].item()

    seconds, first = [], 0.0
    for step in range(args.warmup + args.steps):
        start = time.perf_counter()
        value = train_step() if training else infer_step()
        first = value if step == 0 else first
        if step >= args.warmup:
            seconds.append(time.perf_counter() - start)
    seconds.sort()
    median = statistics.median(seconds)
    print(
        json.dumps(
            {
                "workload": args.workload,
                "batch": args.batch,
                "size": args.size,
                "threads": args.threads,
                "step_seconds": median,
                "step_seconds_all": seconds,
                "images_per_second": args.batch / median,
                "device": args.device,
                "peak_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda"
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "check": first,
                "version": torch.__version__,
                "compiled": args.compile,
            }
        )
    )


if __name__ == "__main__":
    main()
