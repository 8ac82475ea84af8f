"""GPTQ and AWQ by GPTQModel, which needs an environment of its own (`make quantizer`): no module of Penstock is here.

    .venv-quantize/bin/python training/four_bits.py JOB.json

JOB: `model` and `out` (folders), `method` (gptq or awq), `group_size`, `calibration` (lists of tokens), `batch`,
`figures` (the file for
GPTQModel's own losses). training/quantize.py writes it, and reads what comes out.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

# Before the import: its default for one or two cores is one worker, with which it does not start.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


def quantize(job: dict[str, Any]) -> None:
    """GPTQ: Frantar et al., https://arxiv.org/abs/2210.17323. AWQ: Lin et al., https://arxiv.org/abs/2306.00978.

    GPTQ's weights are symmetric and not ordered by activation: vLLM serves no others. AWQ's have zeros: without,
    engines do not agree on what is meant. AWQ needs a backend named, because the default packs on a GPU alone. GPTQ's
    default packer is C++ that is compiled at first use, for as long as all the rest takes; the other writes the same.
    """
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    torch.manual_seed(0)
    common = {"bits": 4, "group_size": job["group_size"], "offload_to_disk": False}
    if job["method"] == "gptq":
        config = QuantizeConfig(**common, sym=True, desc_act=False, pack_impl="original")
        backend = BACKEND.AUTO
    else:
        config = QuantizeConfig(**common, sym=False, quant_method=METHOD.AWQ, format=FORMAT.GEMM)
        backend = BACKEND.AWQ_TORCH if not torch.cuda.is_available() else BACKEND.AUTO
    model = GPTQModel.load(job["model"], config, device="cuda" if torch.cuda.is_available() else "cpu")
    texts = [{"input_ids": tokens, "attention_mask": [1] * len(tokens)} for tokens in job["calibration"]]
    model.quantize(texts, batch_size=job["batch"], backend=backend)
    model.save(job["out"])
    Path(job["figures"]).write_text(json.dumps(model.quant_log), encoding="utf-8")


if __name__ == "__main__":
    quantize(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
