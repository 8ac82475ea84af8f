"""Dense twins: beside loops over single bits, beside transformers' own reading, and as folders."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.dense_twin import awq_weight, gptq_weight, write_dense_twin
from penstock.errors import StartError
from tests.conftest import REPOSITORY
from tests.tiny import write_tiny
from training.int8 import write_int8
from training.quantize_recipe import linear_weights

DATA = REPOSITORY / "tests/data/quantized"
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # the value that stands in the n-th four bits


def word(values: list[int]) -> int:
    """Eight values of four bits, the first in the lowest, as an int32."""
    return sum(value << 4 * at for at, value in enumerate(values))


def int32(words: list[list[int]]) -> Tensor:
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def drawn(seed: int, rows: int, columns: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(16) for _ in range(columns)] for _ in range(rows)]


def along_rows(values: list[list[int]], order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    return int32([[word([row[at + place] for place in order]) for at in range(0, len(row), 8)] for row in values])


def along_columns(values: list[list[int]]) -> Tensor:
    return along_rows([list(column) for column in zip(*values, strict=True)]).t().contiguous()


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4]), st.sampled_from([0, 1]), st.booleans())
def test_gptq_is_value_less_zero_times_scale(seed: int, groups: int, zero_from: int, ordered: bool) -> None:
    inputs, outputs = 16, 8
    values, zeros = drawn(seed, inputs, outputs), drawn(seed + 1, groups, outputs)
    scales = torch.rand(groups, outputs, generator=torch.manual_seed(seed)).half()
    group = [at // (inputs // groups) for at in range(inputs)]
    part = {"qweight": along_columns(values), "qzeros": along_rows(zeros), "scales": scales}
    if ordered:  # by activation: any input may be of any group
        random.Random(seed).shuffle(group)
        part["g_idx"] = torch.tensor(group, dtype=torch.int32)
    found = gptq_weight(part, 4, zero_from)
    assert found.shape == (outputs, inputs)
    for i in range(inputs):
        for o in range(outputs):
            zero = zeros[group[i]][o] + zero_from
            assert float(found[o, i]) == (values[i][o] - zero) * float(scales[group[i], o])


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4]))
def test_awq_is_the_same_in_its_own_order(seed: int, groups: int) -> None:
    inputs, outputs = 8, 16
    values, zeros = drawn(seed, inputs, outputs), drawn(seed + 1, groups, outputs)
    scales = torch.rand(groups, outputs, generator=torch.manual_seed(seed)).half()
    part = {"qweight": along_rows(values, AWQ_PLACES), "qzeros": along_rows(zeros, AWQ_PLACES), "scales": scales}
    found = awq_weight(part, 4)
    for i in range(inputs):
        for o in range(outputs):
            group = i // (inputs // groups)
            assert float(found[o, i]) == (values[i][o] - zeros[group][o]) * float(scales[group, o])


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_twin_of_what_gptqmodel_wrote_is_near_the_dense_model(method: str, tmp_path: Path) -> None:
    """Four bits are within a few per cent of the weights: packing read wrongly would be as far as random ones."""
    write_dense_twin(DATA / method, tmp_path / "twin")
    dense = load_file(write_tiny(tmp_path / "dense") / "model.safetensors")
    twin = load_file(tmp_path / "twin/model.safetensors")
    assert twin.keys() == dense.keys()
    assert {tensor.dtype for tensor in twin.values()} == {torch.float32}
    for name in linear_weights(tmp_path / "dense"):
        if method == "gptq" or name.endswith("o_proj.weight"):  # AWQ moves factors between the others
            assert (twin[name] - dense[name].float()).norm() < 0.2 * dense[name].float().norm()


def int8_of(dense: Path, out: Path) -> Path:
    out.mkdir()
    write_int8(dense, out, linear_weights(dense))
    return out


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_the_twin_of_int8_is_what_transformers_reads_by_compressed_tensors(tmp_path: Path) -> None:
    """Whose matrices round activations too; so their weights are compared, and not what comes out."""
    folder = int8_of(write_tiny(tmp_path / "dense"), tmp_path / "int8")
    write_dense_twin(folder, tmp_path / "twin")
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    twin = load_file(tmp_path / "twin/model.safetensors")
    for name in linear_weights(tmp_path / "dense"):
        theirs = read[name].float() * read[f"{name}_scale"].float() if read[name].dtype == torch.int8 else read[name]
        torch.testing.assert_close(twin[name], theirs)


def test_a_model_of_several_files_keeps_them_with_an_index(tmp_path: Path) -> None:
    dense = write_tiny(tmp_path / "dense", shard_bytes=100_000)
    shards = sorted(dense.glob("*.safetensors"))
    assert len(shards) > 1
    folder = int8_of(dense, tmp_path / "int8")
    write_dense_twin(folder, tmp_path / "twin")
    whole = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    for out in (folder, tmp_path / "twin"):
        index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        held = {name: file.name for file in out.glob("*.safetensors") for name in load_file(file)}
        assert index == held
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "twin").state_dict()
    for name, tensor in whole.items():
        assert (read[name] - tensor.float()).abs().max() <= tensor.abs().max() / 127


def test_parts_of_a_matrix_in_two_files_find_each_other(tmp_path: Path) -> None:
    whole = load_file(DATA / "gptq/model.safetensors")
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "config.json").write_bytes((DATA / "gptq/config.json").read_bytes())
    for at, kinds in enumerate((("scales", "qzeros"), ("qweight", "g_idx", "weight"))):
        save_file({n: t for n, t in whole.items() if n.rpartition(".")[2] in kinds}, folder / f"{at}.safetensors")
    write_dense_twin(folder, tmp_path / "twin")
    write_dense_twin(DATA / "gptq", tmp_path / "other")
    found = {name: t for file in (tmp_path / "twin").glob("*.safetensors") for name, t in load_file(file).items()}
    for name, tensor in load_file(tmp_path / "other/model.safetensors").items():
        assert torch.equal(found[name], tensor)


def test_what_is_dense_has_no_twin_and_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="dense already"):
        write_dense_twin(write_tiny(tmp_path / "dense"), tmp_path / "twin")
    with pytest.raises(FileExistsError, match="choose another"):
        write_dense_twin(DATA / "gptq", tmp_path / "dense")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_the_command_tells_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engine.dense_twin", str(tmp_path), str(tmp_path / "twin")]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "config.json" in ended.stderr
    assert "Traceback" not in ended.stderr
