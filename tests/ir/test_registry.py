"""Every operation, on every sample of its record: type rule, text, verifier, and JAX's answer."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.op import OPS, Family
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.types import dim_value
from lepton_jit.ir.verifier import verify
from tests.ir.cases import SYMBOLS, Case, cases, resolved_attributes
from tests.ir.jax_ops import JAX, run_all

# What JAX does not have: structure, code generation's own forms, random bits keyed in our way (these have a test of
# their own), and the numbers behind symbolic dimensions.
WITHOUT_PEER = {
    *("winograd_input", "winograd_kernel", "winograd_output"),
    "gradient",
    "fusion",
    "scan",
    "affine_contraction",
    "pack",
    "dropout",
    "rng_bit_generator",
    "dimension_value",
}


def _only_ours(case: Case) -> bool:
    """JAX has select_and_scatter as a gradient only, so only of floats."""
    return case.op.name == "select_and_scatter" and not case.sample.operands[0].dtype.is_float


@pytest.mark.parametrize("case", cases())
def test_the_type_rule_says_what_the_reference_returns(case: Case) -> None:
    (node,) = case.graph().nodes
    results = case.op.reference(case.arrays(), node.attributes, SYMBOLS)
    expected = [(v.type.dtype.numpy, tuple(dim_value(d, SYMBOLS) for d in v.type.shape)) for v in node.results]
    assert [(a.dtype, a.shape) for a in results] == expected


@pytest.mark.parametrize("case", cases())
def test_text_is_read_back(case: Case) -> None:
    graph = case.graph()
    verify(graph)
    assert parse_graph(str(graph)) == graph
    assert str(parse_graph(str(graph))) == str(graph)


@pytest.mark.parametrize("case", cases())
def test_operands_are_left_as_they_are(case: Case) -> None:
    (node,) = case.graph().nodes
    arrays = case.arrays()
    for array in arrays:
        array.flags.writeable = False
    case.op.reference(arrays, node.attributes, SYMBOLS)


def test_every_operation_has_a_peer() -> None:
    assert set(OPS) - set(JAX) - WITHOUT_PEER == set()


@pytest.mark.parametrize("op", sorted(JAX))
def test_jax_agrees(op: str) -> None:
    samples = [case for case in (Case(OPS[op], sample) for sample in OPS[op].samples) if not _only_ours(case)]
    functions = [partial(JAX[op], **resolved_attributes(case.graph().nodes[0])) for case in samples]
    theirs = run_all(functions, [case.arrays() for case in samples])
    for case, expected in zip(samples, theirs, strict=True):
        (node,) = case.graph().nodes
        found = case.op.reference(case.arrays(), node.attributes, SYMBOLS)
        for a, b in zip(found, expected if isinstance(expected, tuple) else [expected], strict=True):
            assert_close(a, b, case)


def assert_close(found: np.ndarray, expected: np.ndarray, case: Case) -> None:
    assert found.dtype == expected.dtype
    if found.dtype.kind != "f":
        assert found.tolist() == expected.tolist(), case.sample
        return
    tolerance = 1e-12 if found.dtype == np.float64 else 2e-6
    size = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * size, err_msg=repr(case.sample))


@pytest.mark.parametrize("case", cases(Family.COMPOSITE))
def test_a_decomposition_with_symbols_means_the_same(case: Case) -> None:
    arrays = case.arrays()
    b = Builder()
    operands = [b.input(f"x{i}", t) for i, t in enumerate(case.sample.operands)]
    assert case.op.decompose is not None
    found = case.op.decompose(b, *operands, **case.sample.attributes)
    found = (found,) if isinstance(found, Value) else tuple(found)
    for i, value in enumerate(found):
        b.output(value, f"y{i}")
    graph = b.build()
    (node,) = case.graph().nodes
    assert [v.type for v in found] == [v.type for v in node.results]
    results = run_graph(graph, {f"x{i}": a for i, a in enumerate(arrays)})
    expected = case.op.reference(arrays, node.attributes, SYMBOLS)
    for i, array in enumerate(expected):
        np.testing.assert_array_equal(results[f"y{i}"], array)


@pytest.mark.parametrize("case", [p for p in cases() if "N" in repr(p.values[0].sample.operands)])
def test_an_empty_batch_works(case: Case) -> None:
    (node,) = case.graph().nodes
    symbols = {"N": 0}
    arrays = [np.zeros([dim_value(d, symbols) for d in t.shape], t.dtype.numpy) for t in case.sample.operands]
    results = case.op.reference(arrays, node.attributes, symbols)
    expected = [tuple(dim_value(d, symbols) for d in v.type.shape) for v in node.results]
    assert [a.shape for a in results] == expected
