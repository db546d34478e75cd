"""What the records state about their operations holds for the references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lepton_jit.ir.op import OPS, Family, Op
from lepton_jit.ir.traits import Cost, Storage, Traits
from tests.ir.cases import SYMBOLS, Case


def that(states: Callable[[Traits], object]) -> list[object]:
    """Parameters: every sample of the operations that state something."""
    return [
        pytest.param(Case(op, sample), id=f"{op.name}-{i}")
        for op in OPS.values()
        if states(op.traits)
        for i, sample in enumerate(op.samples)
    ]


def result_of(case: Case, arrays: Sequence[np.ndarray]) -> np.ndarray:
    (node,) = case.graph().nodes
    (result,) = case.op.reference(arrays, node.attributes, SYMBOLS)
    return result


def converted(array: np.ndarray, case: Case) -> np.ndarray:
    """To the dtype of the result, as `convert` does it."""
    (node,) = case.graph().nodes
    (found,) = OPS["convert"].reference([array], {"dtype": node.result.type.dtype}, {})
    return found


def within_range(case: Case) -> list[np.ndarray]:
    """The operands; integers within the range that the sample lets through."""
    low, high = (case.sample.attributes.get(name) for name in ("low", "high"))
    arrays = case.arrays()
    return [a.clip(low, high) for a in arrays] if isinstance(low, int) else arrays


@pytest.mark.parametrize("case", that(lambda t: t.storage is Storage.ALIAS))
def test_an_alias_has_the_bytes_of_its_operand(case: Case) -> None:
    arrays = within_range(case)

    assert result_of(case, arrays).tobytes() == arrays[0].tobytes()


@pytest.mark.parametrize("case", that(lambda t: t.keeps_order))
def test_the_elements_stay_in_their_order(case: Case) -> None:
    (x,) = case.arrays()

    assert result_of(case, [x]).ravel().tolist() == converted(x, case).ravel().tolist()


@pytest.mark.parametrize("case", that(lambda t: t.keeps_numbers))
def test_each_element_is_one_of_an_operand(case: Case) -> None:
    arrays = within_range(case)

    given = {number for a in arrays for number in converted(a, case).ravel().tolist()}
    assert set(result_of(case, arrays).ravel().tolist()) <= given


@pytest.mark.parametrize("case", that(lambda t: t.repeats_numbers))
def test_what_repeats_numbers_has_no_others(case: Case) -> None:
    arrays = case.arrays()
    given = {number for a in arrays for number in a.ravel().tolist()}
    written = np.ravel(case.sample.attributes.get("value", ())) if not arrays else ()

    found = set(result_of(case, arrays).ravel().tolist())

    assert len(found) <= 1 or found <= given | set(np.asarray(written).tolist())


@pytest.mark.parametrize("case", that(lambda t: t.additive))
def test_a_sum_of_results_is_the_result_for_the_sums(case: Case) -> None:
    """On whole numbers, whose sums are exact."""
    first = [np.rint(a).astype(a.dtype) for a in case.arrays()]
    second = [(3 * a + 1).astype(a.dtype) for a in first]

    total = result_of(case, [(a + b).astype(a.dtype) for a, b in zip(first, second, strict=True)])

    np.testing.assert_array_equal(total, result_of(case, first) + result_of(case, second))


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.traits.scalar_source], ids=lambda op: op.name)
def test_a_scalar_source_reads_nothing(op: Op) -> None:
    assert op.operands == ()


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_only_elementwise_operations_state_a_cost_and_only_primitives_are_cheap(op: Op) -> None:
    stated = op.traits.cost is not Cost.MODERATE
    cheap = op.traits.cost is Cost.CHEAP

    assert not stated or (op.family is Family.ELEMENTWISE and cheap == (op.native is None))
