"""Packing, shared beginnings and accumulation on small models of every family, in float64; and that each planted fault
is found and named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from luthier.batch import Signals
from luthier.models.policy import Policy
from luthier.proof.gradients import accumulation, cuts, packing, sharing
from luthier.proof.measure import gradient_gap
from tests.proof.subjects import ADAPTERS, READERS, TIGHT, WRITERS, adapted, document, documents, kind

quick = settings(
    deadline=None,
    max_examples=6,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FAMILIES = (*WRITERS, *READERS)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_padded_and_one_by_one_are_the_same(tiny, family, adapter):
    subject = adapted(tiny, family, ADAPTERS[adapter])

    @quick
    @given(documents(labels=family in READERS))
    def holds(drawn):
        proof = packing(subject, drawn, kind=kind(family))
        assert proof.passed, proof
        assert proof.largest <= TIGHT

    holds()


@pytest.mark.parametrize("family", WRITERS)
def test_scores_of_decoders_packed_are_those_of_one_document_at_a_time(tiny, family):
    subject = adapted(tiny, family, ADAPTERS["lora"], head=True)

    @quick
    @given(documents(labels=True))
    def holds(drawn):
        proof = packing(subject, drawn, kind="classify")
        assert proof.passed, proof
        assert proof.largest <= TIGHT

    holds()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", WRITERS)
def test_what_documents_begin_with_alike_may_be_computed_once(tiny, family, adapter):
    subject = adapted(tiny, family, ADAPTERS[adapter])

    @quick
    @given(documents(least=27))
    def holds(drawn):
        proof = sharing(subject, drawn, kind="supervised")
        assert proof.passed, proof
        assert proof.largest <= TIGHT

    holds()


@pytest.mark.parametrize("family", FAMILIES)
def test_any_cut_of_a_step_is_the_step(tiny, family):
    subject = adapted(tiny, family, ADAPTERS["lora"])

    @quick
    @given(documents(labels=family in READERS))
    def holds(drawn):
        proof = accumulation(subject, drawn, kind=kind(family))
        assert proof.passed, proof
        assert proof.largest <= TIGHT

    holds()


@pytest.fixture
def subject(tiny):
    return adapted(tiny, "llama", ADAPTERS["lora"])


@pytest.fixture
def drawn():
    rng = np.random.default_rng(3)
    return [document(rng, n) for n in (30, 27, 40, 28)]


# Faults


def leaky(policy, batch):
    """All documents of the row as one."""
    return policy.listen(replace(batch, bounds=(0, batch.tokens)))


def test_documents_that_see_each_other_are_found(subject, drawn):
    proof = packing(subject, drawn, kind="supervised", listen=leaky)
    assert proof.passed is False
    assert proof.largest > 0.01
    assert "see each other" in proof.detail


def test_a_wrong_forward_pass_is_told_from_a_leak(subject, drawn):
    def wrong(policy: Policy, batch):
        return Signals(logprobs_S=policy.listen(batch).logprobs_S * 1.1)

    proof = packing(subject, drawn, kind="supervised", listen=wrong)
    assert proof.passed is False
    assert "document 1 of 4 alone" in proof.detail


def test_a_wrong_backward_pass_is_found_though_the_loss_is_right(subject, drawn):
    def wrong(policy: Policy, batch):
        right = policy.listen(batch).logprobs_S
        return Signals(logprobs_S=right + (right - right.detach()))

    proof = packing(subject, drawn, kind="supervised", listen=wrong)
    assert proof.passed is False
    assert "backward" in proof.detail


def test_an_answer_that_is_read_off_its_neighbours_beginning_is_found(subject, drawn):
    def wrong(policy: Policy, batch):
        last = batch.sequence_S == batch.documents - 1
        return policy.listen(replace(batch, select_S=batch.select_S - last.long()))

    assert sharing(subject, drawn, kind="supervised", listen=wrong).passed is False


def mean_of_means(policy, objective, microbatches):
    """What divides by what is in the microbatch, and then by how many there are."""
    total = 0.0
    for batch in microbatches:
        loss = objective.loss(policy.listen(batch), batch) / objective.units(batch) / len(microbatches)
        loss.backward()
        total += float(loss.detach())
    return total


def test_a_mean_of_means_is_found_and_named(subject, drawn):
    proof = accumulation(subject, drawn, kind="supervised", gradient=mean_of_means)
    assert proof.passed is False
    assert proof.largest > 0.01
    assert "mean of the microbatches' own means" in proof.detail


def test_a_microbatch_that_is_left_out_is_no_mean_of_means(subject, drawn):
    def forgetful(policy, objective, microbatches):
        units = sum(objective.units(batch) for batch in microbatches)
        loss = objective.loss(policy.listen(microbatches[0]), microbatches[0]) / units
        loss.backward()
        return float(loss.detach())

    proof = accumulation(subject, drawn, kind="supervised", gradient=forgetful)
    assert proof.passed is False
    assert "means" not in proof.detail


def test_a_gradient_that_is_no_number_passes_for_nothing(subject, drawn):
    def broken(policy, batch):
        return Signals(logprobs_S=policy.listen(batch).logprobs_S * float("nan"))

    assert packing(subject, drawn, kind="supervised", listen=broken).passed is False


# What the checks are made of


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_cut_has_every_document_once(count):
    found = cuts(count)
    assert all(sorted(i for part in cut for i in part) == list(range(count)) for cut in found)
    assert len({str(cut) for cut in found}) == len(found)


def test_a_small_tensor_cannot_hide_and_rounding_of_nothing_is_no_difference():
    expected = {"large": torch.full((100,), 10.0), "small": torch.full((4,), 0.5), "nothing": torch.zeros(4)}
    off = {**expected, "small": torch.full((4,), 0.6)}
    assert gradient_gap(off, expected).at == "small"
    assert gradient_gap(off, expected).largest == pytest.approx(0.2)
    rounded = {**expected, "nothing": torch.full((4,), 1e-7)}
    assert gradient_gap(rounded, expected).largest < 1e-5
    missing = {"small": expected["small"], "nothing": expected["nothing"]}
    assert gradient_gap(missing, expected) == (1.0, "large")
