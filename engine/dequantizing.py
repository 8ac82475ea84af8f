"""A vLLM plugin: 4-bit weights on a processor for which vLLM's build has no 4-bit kernel, and in float32 everywhere.

The CPU build has its kernel for AVX512 alone, chooses it on any other processor too, and dies at the first token. Here
the weights become dense while they are loaded, and are multiplied by the very operation that vLLM takes for dense
weights, prepacked where that is its way: as fast as the dense model, and as large in memory. Also with AVX512, for
float32, in which vLLM's kernel does not compute; and where VLLM_DISABLED_KERNELS names vLLM's.
"""

from typing import Any

import torch
from vllm import envs
from vllm.model_executor.kernels.linear import (
    _POSSIBLE_KERNELS,
    CPUWNA16LinearKernel,
    MPLinearKernel,
    MPLinearLayerConfig,
)
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

NATIVE = CPUWNA16LinearKernel
HALVES = (torch.half, torch.bfloat16)
BIASED, WITH_ZEROS = scalar_types.uint4b8, scalar_types.uint4


class DequantizingLinearKernel(MPLinearKernel):  # type: ignore[misc]  # vLLM is not followed
    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        if c.weight_type not in (BIASED, WITH_ZEROS):
            return False, f"{c.weight_type} is not 4 bits"
        if has_native() and c.act_type != torch.float32:
            return False, f"{NATIVE.__name__} needs less memory"
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.weight = torch.nn.Parameter(self.dense(layer).to(self.config.act_type), requires_grad=False)
        for name in (self.w_q_name, self.w_s_name, self.w_zp_name):
            if name is not None and hasattr(layer, name):
                delattr(layer, name)
        dispatch_cpu_unquantized_gemm(layer, remove_weight=True)

    def dense(self, layer: Any) -> torch.Tensor:
        """(outputs, inputs), float32. GPTQ and AWQ come with the inputs first, compressed-tensors with the outputs."""
        parts: tuple[Any, Any, Any] = self._get_weight_params(layer)
        packed, scales, zeros = parts
        values = unpack_quantized_values_into_int32(packed.data, self.config.weight_type, packed.packed_dim)
        values = values.t() if packed.input_dim == 0 else values  # (outputs, inputs)
        scale = scales.data.t() if scales.output_dim == 1 else scales.data  # (outputs, groups)
        group = values.size(1) // scale.size(1)
        if self.config.weight_type == BIASED:
            values = values - 8
        else:  # AWQ stores zeros also where its configuration says that there are none
            zero = unpack_quantized_values_into_int32(zeros.data, self.config.weight_type, zeros.packed_dim)
            zero = zero if zeros.output_dim == 0 else zero.t()  # (outputs, groups)
            values = values - zero.repeat_interleave(group, 1)
        weight: torch.Tensor = values * scale.float().repeat_interleave(group, 1)
        return weight.contiguous()

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        answer: torch.Tensor = layer.cpu_linear(x, layer.weight, bias)
        return answer


def has_native() -> bool:
    return hasattr(torch.ops._C, "cpu_gemm_wna16") and NATIVE.__name__ not in envs.VLLM_DISABLED_KERNELS


def register() -> None:
    """Once in each of an engine's processes, before it looks at the model. Twice does nothing."""
    kernels: list[Any] = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    if DequantizingLinearKernel in kernels:
        return
    kernels.insert(kernels.index(NATIVE), DequantizingLinearKernel)
    for config in (AutoGPTQConfig, AutoAWQConfig):
        setattr(config, "get_supported_act_dtypes", staticmethod(lambda: [*HALVES, torch.float32]))  # noqa: B010
