"""Writes the PyTorch checkpoints that io_torch_test reads, and what they must be read as.

Run at development time: python tests/data/make_torch_fixtures.py. Needs torch and safetensors.
"""

import argparse
import collections
import io
import pathlib
import zipfile

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
DTYPES = {
    "f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8,
    "u8": torch.uint8, "bool": torch.bool,
}


def layouts():
    """Every dtype in every layout that a state dict can meet."""
    torch.manual_seed(7)
    tensors = collections.OrderedDict()
    for name, dtype in DTYPES.items():
        base = torch.randint(0, 2 if dtype == torch.bool else 100, (4, 6)).to(dtype)
        tensors[f"{name}.contiguous"] = base.clone()
        tensors[f"{name}.transposed"] = base.clone().t()
        tensors[f"{name}.sliced"] = base[1:3, 1:6:2]
        tensors[f"{name}.row"] = base[2]  # shares its storage with .sliced
        tensors[f"{name}.expanded"] = base[:1, :1].clone().expand(3, 2)
        tensors[f"{name}.tied"] = tensors[f"{name}.contiguous"]
        tensors[f"{name}.scalar"] = base[1, 1].clone()
        tensors[f"{name}.empty"] = torch.empty(0, 3, dtype=dtype)
    image = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)
    tensors["channels_last"] = image.to(memory_format=torch.channels_last)
    tensors["parameter"] = torch.nn.Parameter(torch.tensor([1.5, -2.5]))
    return tensors


def save_expected(tensors, name):
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, HERE / name)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 1, bias=False)
        self.block = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU())
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(self.block(self.conv(x)).mean((2, 3)))


def main():
    tensors = layouts()
    save_expected(tensors, "torch_layouts.safetensors")
    torch.save(tensors, HERE / "torch_zip.pt")
    torch.save(tensors, HERE / "torch_legacy.pt", _use_new_zipfile_serialization=False)

    torch.manual_seed(8)
    net = Net()
    save_expected(net.state_dict(), "torch_net.safetensors")
    torch.save(net.state_dict(), HERE / "torch_protocol4.pt", pickle_protocol=4)
    packed = io.BytesIO()
    torch.save(net.state_dict(), packed)
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(
            HERE / "torch_deflated.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry),
                            zipfile.ZIP_DEFLATED)

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net(torch.randn(2, 2, 4, 4)).sum().backward()
    with torch.no_grad():
        before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer.step()
    parallel = collections.OrderedDict(("module." + k, v) for k, v in before.items())
    save_expected(before, "torch_training.safetensors")
    torch.save({
        "epoch": 12, "best": 0.5, "done": False, "nothing": None, "big": 2**70, "negative": -3,
        "arch": "net", "args": argparse.Namespace(lr=0.1), "model": parallel,
        "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()[:16].clone(),
        "classes": ["cell", "palace"],
    }, HERE / "torch_training.pt")

    torch.manual_seed(8)
    torch.save(Net(), HERE / "torch_module.pt")
    torch.jit.script(torch.nn.Linear(2, 1)).save(HERE / "torch_script.pt")
    quantised = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    torch.save({"q": quantised}, HERE / "torch_quantised.pt")
    torch.save({"z": torch.ones(2, dtype=torch.complex64)}, HERE / "torch_complex.pt")
    torch.save({"s": torch.eye(2).to_sparse()}, HERE / "torch_sparse.pt")
    torch.save({"c": torch.ones(2, dtype=torch.complex64).conj()}, HERE / "torch_conjugate.pt")
    torch.save({"u": torch.ones(2).to(torch.uint16)}, HERE / "torch_uint16.pt")
    torch.save([torch.ones(2), 3, {"w": torch.zeros(1)}], HERE / "torch_list.pt")
    torch.save(torch.arange(3), HERE / "torch_bare.pt")


if __name__ == "__main__":
    main()
