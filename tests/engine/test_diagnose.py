"""What a person is told when an engine does not start: from lines that vLLM 0.32 really wrote."""

import pytest

from engine.diagnose import SHOWN_LINES, explain, not_started
from penstock.errors import NoMemory

NOFILE = "(APIServer pid=1) WARNING 11-22 [system_utils.py:255] errors like `OSError: [Errno 24] Too many open files`."
CORE = "(EngineCore pid=2) ERROR 11-22 11:08:40 [core.py:1510] "
CONSEQUENCE = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"

DAMAGED = CORE + "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata"
ABSENT = CORE + "RuntimeError: Cannot find any model weights with `/m`"
MEMORY = CORE + "ValueError: Available memory on node 0 (7.7/10.96 GiB) on kv cache allocation is less than requested"
NOT_FOUND = (
    "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub"
)
FLAG = "vllm_cli.py: error: unrecognized arguments: --max-modellen 100"
LENGTH = "  Value error, User-specified max_model_len (9999) is greater than the derived max_model_len (2048)."
REASONING = "RuntimeError: DeepSeekR1ReasoningParser reasoning parser could not locate think start/end tokens"


@pytest.mark.parametrize(
    ("line", "cause", "remedy"),
    [
        (DAMAGED, "it said: safetensors._safetensors_rust.SafetensorError: Error while", "damaged or cut short"),
        (ABSENT, "it said: RuntimeError: Cannot find any model weights with `/m`", "the folder has no weights"),
        (MEMORY, "it said: ValueError: Available memory on node 0", "kv-cache-memory-bytes: ..."),
        (NOT_FOUND, "it said: huggingface_hub.errors.LocalEntryNotFoundError", "neither on disk nor on Hugging Face"),
        (FLAG, "", "vLLM has no flag --max-modellen"),
        (LENGTH, "", "beyond what the model was trained for"),
        (REASONING, "it said: RuntimeError: DeepSeekR1ReasoningParser", "reasoning-parser"),
    ],
)
def test_the_cause_and_the_remedy_are_told(line: str, cause: str, remedy: str) -> None:
    text = explain("base-0", 1, [NOFILE, line, CONSEQUENCE])
    assert text.startswith("engine base-0 did not start: it ended with exit status 1\n")
    assert cause in text
    assert remedy in text
    assert "it said: OSError" not in text
    assert "{{" not in text


def test_the_signal_is_named_where_nothing_was_written() -> None:
    assert "died of SIGILL\nits kernels use an instruction" in explain("e-0", -4, [])


@pytest.mark.parametrize(
    ("returncode", "line", "memory"),
    [
        (1, MEMORY, True),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        (-9, "", True),
        (-9, FLAG, False),
        (1, ABSENT, False),
        (None, "", False),
    ],
)
def test_a_want_of_memory_is_told_from_other_causes(returncode: int | None, line: str, memory: bool) -> None:
    assert isinstance(not_started("base-0", returncode, [NOFILE, line]), NoMemory) == memory


def test_only_the_last_lines_are_shown() -> None:
    text = explain("e-0", 1, [f"line {number}" for number in range(100)])
    assert text.count("    line ") == SHOWN_LINES
    assert text.endswith("line 99")
