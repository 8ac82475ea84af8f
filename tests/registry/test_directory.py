"""What of a directory is taken, what is refused and why; what is told from its files."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from penstock.errors import BadRequest
from registry.directory import LARGEST_TEXT, opened, taken
from registry.kinds import told
from tests.registry.conftest import DEMO, MakeModel, safetensors


def zipped() -> bytes:
    """As torch.save begins."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return made.getvalue()


def test_files_of_sub_folders_are_taken_and_hidden_ones_and_the_card_left_out(make_model: MakeModel) -> None:
    folder = make_model(
        files={"1_Pooling/config.json": {}, ".git/config": b"x", ".gitattributes": b"x", "README.md": b"#"}
    )
    found = taken(folder)
    expected = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert list(found) == expected


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.PTH", "a.pkl", "deep/a.ckpt", "a.joblib"])
def test_a_pickle_is_refused_by_its_name_unless_it_is_wanted(make_model: MakeModel, name: str) -> None:
    folder = make_model(files={name: b"x"})
    with pytest.raises(BadRequest, match=f"{name} is a pickle or an archive.*--allow-unsafe"):
        taken(folder)
    assert name in taken(folder, allow_unsafe=True)


@pytest.mark.parametrize("content", [zipped(), b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["model.safetensors", "weights", "config.data"])
def test_a_pickle_by_another_name_is_refused(make_model: MakeModel, name: str, content: bytes) -> None:
    with pytest.raises(BadRequest, match="pickle or an archive"):
        taken(make_model(files={name: content}))


def test_a_pickle_whose_ninth_byte_is_a_brace_is_refused(make_model: MakeModel) -> None:
    content = b"\x80\x04\x95\x00\x00\x00\x00\x00{}."
    with pytest.raises(BadRequest, match="weights is a pickle or an archive"):
        taken(make_model(files={"weights": content}))
    long = (0x0480).to_bytes(8, "little") + b"{" + b" " * 2000  # a header whose length begins as a pickle does
    assert "model.safetensors" in taken(make_model(files={"model.safetensors": long}))


def test_a_vocabulary_may_have_auto_map_as_a_word(make_model: MakeModel) -> None:
    assert taken(make_model(files={"vocab.json": {"auto_map": 7}, "tokenizer.json": {"auto_map": {"a": "b"}}}))


def test_a_configuration_too_long_to_be_looked_into_is_refused(make_model: MakeModel) -> None:
    folder = make_model()
    with (folder / "generation_config.json").open("wb") as sparse:
        sparse.truncate(LARGEST_TEXT + 1)
    with pytest.raises(BadRequest, match=r"generation_config.json is longer than 64 MiB"):
        taken(folder)


def test_what_only_is_called_safetensors_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(BadRequest, match=r"model.safetensors is not in the safetensors format"):
        taken(make_model(files={"model.safetensors": b"version https://git-lfs.github.com/spec/v1"}))


@pytest.mark.parametrize("name", ["modeling_x.py", "x.pyc", "x.so", "run.sh"])
def test_code_is_refused(make_model: MakeModel, name: str) -> None:
    with pytest.raises(BadRequest, match=f"{name} is code"):
        taken(make_model(files={name: b"print()"}))


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "generation_config.json",
        "vision/config.json",
    ],
)
def test_a_configuration_that_names_code_is_refused(make_model: MakeModel, file: str) -> None:
    value = {"text_config": {"auto_map": {"AutoModel": "somebody/else--modeling.Evil"}}}
    folder = make_model(files={file: value})
    with pytest.raises(BadRequest, match=rf"{file} names code of its own \(auto_map\)"):
        taken(folder)
    assert taken(folder, allow_unsafe=True)


@pytest.mark.parametrize("config", [b"not json", b"[1]", b"[" * 100_000])
def test_a_configuration_that_is_none_is_told(make_model: MakeModel, config: bytes) -> None:
    with pytest.raises(BadRequest, match=r"config.json is no JSON"):
        taken(make_model(files={"config.json": config}))


def test_a_directory_without_weights_is_told(make_model: MakeModel) -> None:
    with pytest.raises(BadRequest, match="has no weights"):
        taken(make_model(files={"model.safetensors": None}))


def test_an_empty_directory_and_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(BadRequest, match=r"is empty|is no directory"):
            taken(tmp_path / name)


def test_a_link_to_a_file_within_is_followed(make_model: MakeModel) -> None:
    folder = make_model()
    (folder / "again.safetensors").symlink_to("model.safetensors")
    assert taken(folder)["again.safetensors"].place.read_bytes() == safetensors()


def test_links_that_lead_out_nowhere_round_or_to_folders_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for target, message in {
        tmp_path / "secret": "leads out",
        Path("../secret"): "leads out",
        Path("/etc/passwd"): "leads out",
        Path("/"): "leads out",
        Path("absent"): "leads nowhere",
        Path("link"): "leads nowhere",
        Path("sub"): "to what is no file",
    }.items():
        folder = make_model()
        (folder / "sub").mkdir()
        (folder / "link").symlink_to(target)
        with pytest.raises(BadRequest, match=message):
            taken(folder)


def test_a_chain_of_links_out_of_the_directory_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = make_model()
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to(tmp_path / "secret")
    with pytest.raises(BadRequest, match="leads out"):
        taken(folder)


def test_the_directory_itself_may_be_a_link(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(make_model())
    assert "config.json" in taken(tmp_path / "current")


def test_pipes_are_refused_and_not_waited_for(make_model: MakeModel) -> None:
    folder = make_model()
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadRequest, match="neither a file nor a directory"):
        taken(folder)
    with pytest.raises(BadRequest, match="no regular file"):
        opened(folder / "pipe")


def test_a_link_that_took_a_files_place_is_not_read(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = make_model()
    files = taken(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(BadRequest, match="cannot be read"):
        opened(files["config.json"].place)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({}, "full"),
        ({"adapter_config.json": {"r": 8}}, "adapter"),
        ({"config.json": {"quantization_config": {"quant_method": "gptq"}}}, "quantized"),
        ({"quantize_config.json": {"bits": 4}}, "quantized"),
        ({"config.json": {"architectures": "odd"}}, "full"),
        ({"config.json": {"architectures": ["LlamaForSequenceClassification"]}}, "reward"),
    ],
)
def test_the_kind_is_told_from_the_files(make_model: MakeModel, files: dict[str, object], kind: str) -> None:
    found = taken(make_model(files=files))
    assert told(found).kind == kind
    assert told(found, "reward").kind == "reward"


def test_a_kind_that_cannot_be_told_is_asked_for(make_model: MakeModel) -> None:
    found = taken(make_model(files={"config.json": None}))
    with pytest.raises(BadRequest, match=r"no model in the Hugging Face layout.*--kind"):
        told(found)


def test_one_template_has_one_digest_wherever_it_stands(make_model: MakeModel) -> None:
    def digest(**files: object) -> str | None:
        found = taken(make_model(files=files))
        return told(found).template

    usual = digest()
    assert usual
    own_file = {"chat_template.jinja": b"{{ messages }}", "tokenizer_config.json": {"eos_token": "</s>"}}
    assert digest(**own_file) == usual
    assert digest(**{"chat_template.jinja": b"{{ other }}"}) != usual
    assert digest(**{"tokenizer_config.json": {}}) is None


def test_the_tokenizers_digest_is_of_its_vocabulary_and_its_special_tokens(make_model: MakeModel) -> None:
    def digest(**files: object) -> str | None:
        found = taken(make_model(files=files))
        return told(found).tokenizer

    usual = digest()
    assert digest(**{"tokenizer_config.json": {"eos_token": "</s>", "model_max_length": 7}}) == usual
    assert digest(**{"tokenizer_config.json": {"eos_token": "<|end|>"}}) != usual
    assert digest(**{"tokenizer.json": {}}) != usual
    assert digest(**{"tokenizer.json": None}) is None


def test_the_demo_model_is_taken() -> None:
    found = taken(DEMO)
    assert told(found).kind == "full"
    assert "model.safetensors" in found
