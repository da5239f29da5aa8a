"""The inner loops of a step: norms, rotary positions, gated activations, attention by document, the head's softmax.

Each exists three times with the same signature: in `plain`, with torch's operations, for any device and as the
definition; in `native`, C++ compiled once for this processor, several times faster on a CPU; and in `cuda`, for a GPU.
`of` chooses. The functions compute values and hand-written gradients; `models.functions` makes autograd functions of
them.
"""

import os
from types import ModuleType

from torch import Tensor

from luthier.kernels import cuda, native, plain
from luthier.kernels.build import library

# torch compiles products in bf16 for each shape, at about a megabyte each, and would keep 1,024 of them: packed rows
# seldom have a shape twice, so a long run grew by a gigabyte. One microbatch has fewer than 64. Read at first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def of(x: Tensor) -> ModuleType:
    """`cuda` for what lies on a GPU, `native` where it was compiled and `x` lies in main memory, else `plain`."""
    if x.is_cuda:
        return cuda
    return native if x.device.type == "cpu" and library() is not None else plain
