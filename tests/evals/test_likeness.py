"""How a version is spoken to, beside its parent."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.candidates import Candidate, candidate
from evals.likeness import likeness
from evals.parity import end_of_turn
from evals.reference import ends
from penstock.errors import BadRequest
from penstock.gates import Change
from penstock.references import Reference
from penstock.store import Store, opened
from registry.adding import About, add
from registry.artifacts import Artifacts, artifacts_at
from tests.conftest import REPOSITORY
from tests.evals.adapters import lora

pytestmark = pytest.mark.anyio
DEMO = REPOSITORY / "recipes/demo/model"
SPOKEN = ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))


def changed(folder: Path, name: str, **values: object) -> Path:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def retold(folder: Path, old: str, new: str) -> Path:
    file = folder / "chat_template.jinja"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return folder


def whole(folder: Path) -> Path:
    shutil.copytree(DEMO, folder)
    return folder


def adapter(folder: Path) -> Path:
    lora(folder, DEMO, 0.01)
    for name in SPOKEN:
        shutil.copy(DEMO / name, folder / name)
    return folder


async def added(tmp_path: Path, folder: Path, parent: str | None = "demo@1") -> Candidate:
    """As a version of its own beside the demo, which is demo@1."""
    kept = artifacts_at(str(tmp_path / "kept"))
    async with opened(f"sqlite:///{tmp_path / 'penstock.db'}") as store:
        await add(store, kept, DEMO, About("demo"), "me")
        version = await add(store, kept, folder, About("tuned", parent=parent), "me")
        return await candidate(store, kept, Reference("tuned", version.number), tmp_path / "scratch")


def verdicts(found: Candidate, *on_purpose: Change) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in likeness(found, on_purpose)}


@pytest.mark.parametrize("make", [whole, adapter])
async def test_what_is_spoken_to_alike_passes(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    found = await added(tmp_path, make(tmp_path / "made"))
    assert set(verdicts(found).values()) == {"passed"}
    assert ends(found.spoken_to_by, found.base_folder) == {"end": 2, "text": "<|im_end|>", "stops": [2]}


async def test_an_adapter_that_brings_nothing_is_spoken_to_as_its_base(tmp_path: Path) -> None:
    found = await added(tmp_path, lora(tmp_path / "made", DEMO, 0.01))
    assert set(verdicts(found).values()) == {"passed"}
    assert found.spoken_to_by == found.base_folder
    assert found.base.reference == "demo@1"


@pytest.mark.parametrize("make", [whole, adapter])
@pytest.mark.parametrize(
    ("change", "check", "says"),
    [
        (lambda folder: retold(folder, "<|im_start|>assistant\\n", "<|im_start|>assistant: "), "template", "changed: "),
        (lambda folder: changed(folder, "tokenizer_config.json", pad_token="<|im_end|>"), "tokenizer", "changed: "),
        (lambda folder: changed(folder, "generation_config.json", eos_token_id=[0, 2]), "end", "is [0, 2], not [2]"),
    ],
)
async def test_what_was_changed_is_told_unless_it_was_on_purpose(
    tmp_path: Path, make: Callable[[Path], Path], change: Callable[[Path], Path], check: Change, says: str
) -> None:
    found = await added(tmp_path, change(make(tmp_path / "made")))
    failed = [finding for finding in likeness(found, ()) if finding.verdict == "failed"]
    assert [finding.check for finding in failed] == [check]
    assert says in failed[0].why
    assert "demo@1's" in failed[0].why
    assert set(verdicts(found, check).values()) == {"passed"}


async def test_an_engine_that_would_go_on_after_the_templates_end_is_told(tmp_path: Path) -> None:
    """The files agree with one another, and with no end of a turn."""
    found = await added(tmp_path, changed(whole(tmp_path / "made"), "generation_config.json", eos_token_id=0), None)
    finding = await end_of_turn(found)
    assert finding.verdict == "failed"
    assert "<|im_end|> (2)" in finding.why
    assert "add 2 to its eos_token_id" in finding.why


def test_a_template_without_marks_has_no_end_to_look_for(tmp_path: Path) -> None:
    folder = whole(tmp_path / "made")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert ends(folder, folder)["end"] is None


async def test_without_a_parent_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    found = await added(tmp_path, whole(tmp_path / "made"), None)
    assert set(verdicts(found).values()) == {"skipped"}
    assert not any(finding.stops for finding in likeness(found, ()))


async def test_without_a_parent_it_is_spoken_to_as_what_it_would_follow(tmp_path: Path) -> None:
    incumbent = await added(tmp_path / "a", whole(tmp_path / "made"))
    same = await added(tmp_path / "b", tmp_path / "made", None)
    assert {finding.verdict for finding in likeness(same, (), incumbent)} == {"passed"}

    retold(tmp_path / "made", "<|im_start|>assistant\\n", "<|im_start|>assistant: ")
    changed(tmp_path / "made", "generation_config.json", eos_token_id=[0, 2])
    other = await added(tmp_path / "c", tmp_path / "made", None)
    failed = [finding.check for finding in likeness(other, (), incumbent) if finding.stops]
    assert failed == ["template", "end"]
    assert not any(finding.stops for finding in likeness(other, ("template", "end"), incumbent))


async def test_an_adapter_of_an_adapter_stands_on_the_first_whole_model(tmp_path: Path) -> None:
    kept = artifacts_at(str(tmp_path / "kept"))
    async with opened(f"sqlite:///{tmp_path / 'penstock.db'}") as store:
        await add(store, kept, DEMO, About("demo"), "me")
        first = await add(store, kept, adapter(tmp_path / "first"), About("tuned", parent="demo@1"), "me")
        second = lora(tmp_path / "second", DEMO, 0.02)
        await add(store, kept, second, About("tuned", parent=first.reference), "me")
        found = await candidate(store, kept, Reference("tuned", 2), tmp_path / "scratch")
        assert (found.base.reference, found.parent and found.parent.reference) == ("demo@1", "tuned@1")
        await orphan(store, kept, tmp_path)


async def orphan(store: Store, kept: Artifacts, tmp_path: Path) -> None:
    await add(store, kept, lora(tmp_path / "third", DEMO, 0.03), About("orphan"), "me")
    with pytest.raises(BadRequest, match=r"an adapter without a parent.*--parent"):
        await candidate(store, kept, Reference("orphan", 1), tmp_path / "scratch")
