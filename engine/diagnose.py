"""Why an engine did not start, and what to do: from how it ended and the last lines it wrote."""

import re
import signal
from collections.abc import Sequence

from penstock.errors import NoMemory, StartError

SHOWN_LINES = 15

# An exception as a traceback ends with it, behind vLLM's prefix or not: `(EngineCore pid=7) ERROR ... ValueError: x`.
EXCEPTION = re.compile(r"^[ |]*(?:\(\w+ pid=\d+\) )?(?:ERROR [^\]]*\] )?((?:\w+\.)*\w*(?:Error|Exception): \S.*)")
CONSEQUENCE = "Engine core initialization failed"

MEMORY = (
    r"(?i)out of memory|cannot allocate memory|MemoryError|not enough memory|available memory on node|"
    r"free memory on device|larger than the available KV cache|No available memory for the cache blocks"
)

# The first that matches the engine's last lines; what a person can do about it.
CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"unrecognized arguments: (?P<what>\S+)",
        "vLLM has no flag {what}: correct the engine's `options` (names: `python -m engine.vllm_cli serve --help=all`)",
    ),
    (
        r"(?i)gated repo|401 client error|access to model .* is restricted",
        "the model is gated: accept its licence on Hugging Face and set HF_TOKEN in the engine's `env`",
    ),
    (
        r"(?i)not a local folder and is not a valid|RepositoryNotFound|LocalEntryNotFound|couldn't connect to|"
        r"Can't load the configuration|cannot find the requested files|outgoing traffic has been disabled|"
        r"Invalid repository ID",
        "the model was found neither on disk nor on Hugging Face: check `model`, the network, and HF_TOKEN",
    ),
    (
        r"(?i)SafetensorError|deserializing header|InvalidHeader|incomplete metadata",
        "the weights are damaged or cut short: fetch or copy the model again",
    ),
    (
        r"Cannot find any model weights|no file named model\.safetensors",
        "the folder has no weights: it needs model.safetensors, or its shards and their index, beside config.json",
    ),
    (
        MEMORY,
        "the memory does not suffice: lower `options: {{kv-cache-memory-bytes: ..., max-model-len: ...}}`, "
        "free memory, or serve a smaller or quantized model",
    ),
    (
        r"max_model_len.*is greater than the derived",
        "`options: {{max-model-len: ...}}` is beyond what the model was trained for: lower it",
    ),
    (
        r"(?i)model architectures .* are not supported|does not recognize this architecture",
        "vLLM cannot serve this architecture: see the list of supported models in vLLM's documentation",
    ),
    (r"No module named '?vllm", "no engine is installed: run `make install`"),
    (
        r"(?i)could not locate think",
        "`options: {{reasoning-parser: ...}}` does not fit the model's tokenizer: choose another or leave it out",
    ),
)

SIGNALS = {
    signal.SIGILL: "its kernels use an instruction this processor lacks: `penstock doctor` tells which build fits",
    signal.SIGKILL: "it was killed, most often by the kernel for want of memory (see `dmesg`): free some, "
    "or lower `options: {kv-cache-memory-bytes: ...}`",
}


def not_started(name: str, returncode: int | None, lines: Sequence[str]) -> StartError:
    """`explain`, as what its caller raises: NoMemory where that was the cause."""
    said, cause = explain(name, returncode, lines), cause_in("\n".join(lines))
    short = cause[0].re.pattern == MEMORY if cause else returncode == -signal.SIGKILL
    return NoMemory(said) if short else StartError(said)


def explain(name: str, returncode: int | None, lines: Sequence[str]) -> str:
    """One message: what happened, what to do, then the engine's last lines. `returncode` None: it ran out of time."""
    text = "\n".join(lines)
    ended = how_it_ended(returncode)
    cause = root_cause(lines)
    said = f"it said: {cause}\n" if cause else ""
    shown = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])
    return f"engine {name} did not start: {ended}\n{said}{remedy(returncode, text)}\nits last lines:\n{shown}"


def root_cause(lines: Sequence[str]) -> str | None:
    """The last exception printed that is more than the consequence of one in another of vLLM's processes."""
    found = [match[1] for match in map(EXCEPTION.match, lines) if match and CONSEQUENCE not in match[1]]
    return found[-1] if found else None


def how_it_ended(returncode: int | None) -> str:
    if returncode is None:
        return "it gave no first token in the time allowed (probe.start_timeout_s)"
    if returncode < 0:
        return f"it died of {signal.Signals(-returncode).name}"
    return f"it ended with exit status {returncode}"


def cause_in(text: str) -> tuple[re.Match[str], str] | None:
    """The first of CAUSES that matches, and its advice."""
    return next(((found, advice) for pattern, advice in CAUSES if (found := re.search(pattern, text))), None)


def remedy(returncode: int | None, text: str) -> str:
    if cause := cause_in(text):
        return cause[1].format(**cause[0].groupdict())
    if returncode is not None and returncode < 0 and -returncode in SIGNALS:
        return SIGNALS[signal.Signals(-returncode)]
    return "`penstock doctor` checks the machine; the engine's lines below say the rest"
