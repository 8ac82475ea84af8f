"""The dense twin of a quantized folder: what its weights stand for, in float32, in Hugging Face's layout.

    python -m engine.dense_twin QUANTIZED OUT

A twin answers as the quantized model does, up to the order of sums (and, for int8, the rounding of activations), in
anything that loads dense weights; nothing that reads or wrote the quantized form is needed. Tokenizer and template
come along.
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.quantized import Method, Quantization, of_folder
from penstock.errors import StartError

# AWQ puts the values 0, 2, 4, 6, 1, 3, 5, 7 of eight into one integer, lowest bits first.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
# The tensors of a quantized module; the first stands where its weight did, the second no dense module has.
PARTS: Mapping[Method, tuple[str, ...]] = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "int8": ("weight", "weight_scale"),
}
OF_THE_WEIGHTS = (
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "quant_log.csv",
    "model.safetensors.index.json",
    "README.md",
    "SHA256SUMS",
)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """(rows, columns) of int32 -> (rows, columns * 32 / bits), lowest first: [[0x21]] -> [[1, 2, 0, 0, 0, 0, 0, 0]]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values: Tensor = (packed[..., None] >> shifts) & (2**bits - 1)
    return values.flatten(1)


def gptq_weight(part: Mapping[str, Tensor], bits: int, zero_from: int) -> Tensor:
    """(outputs, inputs). `qweight` is packed along the inputs, `qzeros` along the outputs; `g_idx` is the group of each
    input, in order where there is none."""
    values = unpacked(part["qweight"].t().contiguous(), bits)  # (outputs, inputs)
    zeros = unpacked(part["qzeros"], bits) + zero_from  # (groups, outputs)
    groups = part["g_idx"].long() if "g_idx" in part else in_order(values.size(1), zeros.size(0))
    return ((values - zeros.t()[:, groups]) * part["scales"].float().t()[:, groups]).contiguous()


def awq_weight(part: Mapping[str, Tensor], bits: int) -> Tensor:
    """(outputs, inputs). All is packed along the outputs, in AWQ's order."""
    values, zeros = (in_awq_order(unpacked(part[name], bits)) for name in ("qweight", "qzeros"))
    groups = in_order(values.size(0), zeros.size(0))
    return ((values - zeros[groups]) * part["scales"].float()[groups]).t().contiguous()


def in_awq_order(values: Tensor) -> Tensor:
    eights = values.reshape(values.size(0), -1, len(AWQ_ORDER))
    return eights[..., list(AWQ_ORDER)].flatten(1)


def in_order(inputs: int, groups: int) -> Tensor:
    return torch.arange(inputs) // (inputs // groups)


def int8_weight(part: Mapping[str, Tensor]) -> Tensor:
    """(outputs, inputs), a scale for each output."""
    return part["weight"].float() * part["weight_scale"].float().reshape(-1, 1)


class Shards:
    """The tensors of all of a folder's safetensors, read when they are asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.files = sorted(folder.glob("*.safetensors"))
        handles = {file: stack.enter_context(safe_open(file, "pt")) for file in self.files}
        self.names = {file: sorted(handle.keys()) for file, handle in handles.items()}
        self._holder = {name: handles[file] for file, names in self.names.items() for name in names}

    def __contains__(self, name: str) -> bool:
        return name in self._holder

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._holder[name].get_tensor(name)
        return tensor

    def parts(self, module: str, kinds: tuple[str, ...]) -> dict[str, Tensor]:
        return {kind: self[f"{module}.{kind}"] for kind in kinds if f"{module}.{kind}" in self}


def dense(names: Iterable[str], shards: Shards, how: Quantization) -> Iterator[tuple[str, Tensor]]:
    """What the tensors called `names` stand for, in float32; a module's weight comes in the place of its first part."""
    first, *others = kinds = PARTS[how.method]
    for name in names:
        module, _, kind = name.rpartition(".")
        if kind not in kinds or f"{module}.{others[0]}" not in shards:
            tensor = shards[name]
            yield name, tensor.float() if tensor.is_floating_point() else tensor
        elif kind == first:
            yield f"{module}.weight", weight(shards.parts(module, kinds), how)


def weight(part: Mapping[str, Tensor], how: Quantization) -> Tensor:
    match how.method:
        case "gptq":
            return gptq_weight(part, how.bits, how.zero_from)
        case "awq":
            return awq_weight(part, how.bits)
        case "int8":
            return int8_weight(part)


def write_dense_twin(folder: Path, out: Path) -> None:
    """`folder` keeps as it is; `out` is written whole or not at all. Raises StartError for a folder that is not
    quantized in one of the three ways, FileExistsError for an `out` that is there."""
    how = of_folder(folder)
    if how is None:
        raise StartError(f"{folder} is not quantized by GPTQ, AWQ or int8: what it holds is dense already, or unknown")
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it, or choose another folder")
    building = out.with_name(f".{out.name}.new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    with ExitStack() as stack:
        shards = Shards(folder, stack)
        holder: dict[str, str] = {}
        for file in shards.files:
            tensors = dict(dense(shards.names[file], shards, how))
            save_file(tensors, building / file.name, metadata={"format": "pt"})
            holder |= dict.fromkeys(tensors, file.name)
    if len(shards.files) > 1:
        index = {"metadata": {}, "weight_map": holder}
        (building / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    copy_beside(folder, building)
    write_dense_config(folder, building)
    building.rename(out)


def copy_beside(folder: Path, out: Path) -> None:
    """Tokenizer, template and whatever else is neither weight nor configuration, as it is."""
    for file in folder.iterdir():
        if file.is_file() and file.suffix not in WEIGHTS and file.name not in OF_THE_WEIGHTS:
            shutil.copyfile(file, out / file.name)


def write_dense_config(folder: Path, out: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    config.pop("torch_dtype", None)
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the dense twin of a quantized model.")
    parser.add_argument("quantized", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        write_dense_twin(arguments.quantized, arguments.out)
    except (StartError, OSError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
