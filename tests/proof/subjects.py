"""Small models and rows for the checks."""

import numpy as np
import torch
from hypothesis import strategies as st

from luthier.models import adapters
from luthier.models.load import Head
from luthier.models.policy import policy
from luthier.recipe import Full, Lora
from luthier.types import Sequence

WRITERS = ("llama", "qwen2", "gemma3", "gpt2")
READERS = ("bert", "modernbert")
ADAPTERS = {"full": Full(), "lora": Lora(rank=3, alpha=5), "dora": Lora(rank=3, dora=True)}
HEAD = Head(3, "single_label_classification", ("a", "b", "c"))
VOCABULARY = 448

TIGHT = 1e-11
"""What float64 leaves of a difference."""


def kind(family):
    return "classify" if family in READERS else "supervised"


def adapted(tiny, family, adapter, *, dtype=torch.float64, head=False):
    """A policy with a classification head for encoders (and others with `head`), and an adapter that changes
    something."""
    head = head or family in READERS
    made = policy(tiny(family, dtype=dtype, head=HEAD if head else None), sequence=head)
    adapters.attach(made.model, adapter, seed=0, head=made.head.modules if head else ())
    if not isinstance(adapter, Full):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in adapters.trained(made.model).values():
                p.add_(0.05 * torch.randn(p.shape, generator=generator).to(p.dtype))
    return made


def document(rng, length, *, label=None):
    """Random tokens, at least one of which is learnt where there is something before it."""
    weights = rng.choice([0.0, 0.5, 1.0], size=length).astype(np.float32)
    weights[-1] = 1
    tokens = rng.integers(3, VOCABULARY, length).astype(np.int32)
    return Sequence("x", tokens, weights, () if label is None else (float(label),))


@st.composite
def documents(draw, *, labels=False, least=1):
    """Two to five documents of any lengths and masks, some with common beginnings."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(least, 30), min_size=2, max_size=5).filter(lambda n: max(n) > 1))
    return [document(rng, n, label=rng.integers(3) if labels else None) for n in lengths]
