"""`penstock registry` as a person types it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.penstock.test_cli import penstock
from tests.registry.conftest import DEMO, MakeModel


def done(*words: str, **env: str) -> str:
    """What the command prints on standard output."""
    shown = penstock("registry", *words, **env)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_versions_are_added_listed_shown_compared_and_tagged(make_model: MakeModel, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 1\n")
    (tmp_path / "train.jsonl").write_text("{}\n")
    said = ["--recipe", str(recipe), "--data", str(tmp_path / "train.jsonl"), "--metric", "exact=0.95"]
    assert done("add", "demo", str(DEMO), *said) == "demo@1\n"
    adapter = make_model(files={"adapter_config.json": {"r": 8}})
    assert done("add", "terse", str(adapter), "--parent", "demo@1") == "terse@1\n"
    assert "new, to version 1" in done("tag", "demo@1", "production", "--expect", "none")
    assert "nothing was changed" in done("tag", "demo@1", "production")
    listed = json.loads(done("list", "--json"))
    assert [(each["name"], each["kind"], each["aliases"]) for each in listed] == [
        ("demo", "full", ["production"]),
        ("terse", "adapter", []),
    ]
    table = done("list")
    assert "demo@1" in table
    assert "exact 0.95" in table
    shown = done("show", "registry:demo@production")
    for words in ("demo@1 (production)", "metric exact: 0.95", "data train.jsonl:", "model.safetensors", "template:"):
        assert words in shown
    assert shown.index("demo@1 full (production) <-") < shown.index("└── terse@1 adapter")
    assert json.loads(done("show", "demo@1", "--json"))["recipe"] == "seed: 1\n"
    compared = done("diff", "demo@1", "terse@1")
    for words in ("kind: full -> adapter", "exact: 0.95 -> none", "+ adapter_config.json", "~ config.json", "-seed: 1"):
        assert words in compared
    assert done("diff", "demo@1", "demo@1") == "no difference\n"


def test_who_comes_too_late_with_an_alias_is_told() -> None:
    for _ in range(2):
        done("add", "demo", str(DEMO))
    done("tag", "demo@1", "production")
    assert "from version 1, to version 2" in done("tag", "demo@2", "production", "--expect", "1")
    late = penstock("registry", "tag", "demo@1", "production", "--expect", "1")
    assert late.returncode == 1
    assert "demo@production points to version 2, and not, as expected, to version 1" in late.stderr
    actions = [entry["action"] for entry in json.loads(penstock("audit", "list", "--json").stdout)]
    assert actions == ["version.added", "version.added", "alias.moved", "alias.moved"]


def test_a_version_goes_out_and_in_again(tmp_path: Path) -> None:
    done("add", "demo", str(DEMO))
    assert "demo@1 is in" in done("export", "demo@1", str(tmp_path / "out"))
    made = json.loads(done("import", str(tmp_path / "out"), "--name", "back", "--parent", "demo@1", "--json"))
    assert made["digest"] == json.loads(done("show", "demo@1", "--json"))["digest"]
    assert done("import", str(tmp_path / "out")) == "out@1\n"


def test_what_a_killed_add_left_is_shown_then_deleted(home: Path) -> None:
    done("add", "demo", str(DEMO))
    left = home / "artifacts" / "sha256" / "ab" / ("ab" * 32)
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"x" * 2048)
    assert "0 files (0 B) would be deleted, 8 kept" in done("gc", "--dry-run")
    assert "1 files (2.0 KiB) would be deleted, 7 kept" in done("gc", "--grace", "0s", "--dry-run")
    assert left.exists()
    assert "1 files (2.0 KiB) deleted, 7 kept" in done("gc", "--grace", "0s")
    assert not left.exists()


def test_files_are_kept_where_the_configuration_says(tmp_path: Path, home: Path) -> None:
    place = {"PENSTOCK_REGISTRY__ARTIFACTS": f"file://{tmp_path / 'bucket'}"}
    done("add", "demo", str(DEMO), **place)
    assert len(list((tmp_path / "bucket" / "sha256").glob("*/*"))) == 7
    assert not (home / "artifacts").exists()
    done("export", "demo@1", str(tmp_path / "out"), **place)
    lost = penstock("registry", "export", "demo@1", str(tmp_path / "other"))
    assert "is gone: is registry.artifacts the place where the version was added?" in lost.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", ".x", "."], "a model's name has 1 to 96"),
        (["add", "a", ".", "--kind", "half"], "--kind half: take one of full, adapter, quantized, reward"),
        (["add", "a", ".", "--metric", "good"], "--metric good: write NAME=NUMBER"),
        (["add", "a", ".", "--metric", "a=nan"], "no finite number"),
        (["show", "demo"], "'demo' names no version: write registry:NAME@ALIAS"),
        (["show", "demo@1"], "no model is named 'demo' in the registry"),
        (["list", "demo"], "no model is named 'demo' in the registry"),
        (["list", "a/b"], "cannot be the name of a model"),
        (["tag", "demo@1", "7"], "an alias is not a number"),
        (["tag", "demo@1", "x", "--expect", "y"], "--expect y: write the number of a version, or none"),
        (["import", "./absent"], "neither a directory nor a Hugging Face id"),
        (["gc", "--grace", "soon"], "--grace soon: write a duration"),
    ],
)
def test_a_mistake_ends_in_its_message(words: list[str], message: str, tmp_path: Path) -> None:
    shown = penstock("registry", *[str(tmp_path) if word == "." else word for word in words])
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("penstock: ")
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


def test_serving_what_is_not_registered_ends_in_its_message() -> None:
    for model, message in {
        "registry:demo": "names no version: write registry:NAME@ALIAS",
        "registry:demo@production": "engines.base: registry:demo@production: no model is named 'demo' in the registry",
    }.items():
        shown = penstock("serve", model, "--port", "0")
        assert (shown.returncode, "Traceback" in shown.stderr) == (1, False)
        assert message in shown.stderr


def test_an_unsafe_directory_is_taken_only_when_that_is_said(make_model: MakeModel) -> None:
    model = make_model(files={"pytorch_model.bin": b"x"})
    refused = penstock("registry", "add", "a", str(model))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "pytorch_model.bin is a pickle or an archive, which can run code when it is loaded" in refused.stderr
    assert done("add", "a", str(model), "--allow-unsafe") == "a@1\n"


def test_a_place_without_room_or_rights_is_told(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "model")
    (tmp_path / "file").write_text("")
    shown = penstock(
        "registry", "add", "a", str(tmp_path / "model"), PENSTOCK_REGISTRY__ARTIFACTS=str(tmp_path / "file")
    )
    assert shown.returncode == 1
    assert f"registry.artifacts: {tmp_path / 'file'} cannot be used: File exists" in shown.stderr


def test_help_of_the_registry_is_quick() -> None:
    code = "import sys; import penstock.cli; print({'sqlalchemy', 'yaml', 'registry', 'rich'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert shown.stdout.strip() == "set()"
