"""The tables of functions by operation: they have no unknown operation, and whoever needs an entry has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from lepton_jit.codegen.kernels import evaluate
from lepton_jit.codegen.program import independent_rows, schedule
from lepton_jit.codegen.target import get_target
from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.op import OPS, Family
from lepton_jit.ir.traits import Storage, Traits
from lepton_jit.ir.types import TensorType
from lepton_jit.passes.scans import lifting

TABLES = {
    "evaluate": evaluate._RULES,
    "schedule": schedule._SCHEDULES,
    "finishes in place": schedule._FINISHES_IN_PLACE,
    "independent rows": independent_rows._RULES,
    "lifting": lifting._RULES,
}
# What passes replace before code generation: `lower-contractions`.
LOWERED_BEFORE = {"dot_general"}


def stating(states: Callable[[Traits], object]) -> set[str]:
    return {op.name for op in OPS.values() if states(op.traits)}


@pytest.mark.parametrize("name", TABLES)
def test_the_keys_of_a_table_are_operations(name: str) -> None:
    table: Mapping[str, object] = TABLES[name]

    assert set(table) - set(OPS) == set()


def test_what_kernels_compute_where_they_read_it_has_a_rule() -> None:
    computed = stating(lambda t: t.storage is Storage.RECOMPUTED or t.fuses_as_map)

    assert computed - set(evaluate._RULES) == set()


def test_what_has_a_kernel_of_its_own_has_a_schedule() -> None:
    own = stating(lambda t: t.epilogue or t.accumulates or t.loads_operands)

    assert own - set(schedule._SCHEDULES) == set()


def test_only_what_takes_an_epilogue_finishes_in_place() -> None:
    assert set(schedule._FINISHES_IN_PLACE) - stating(lambda t: t.epilogue) == set()


@pytest.mark.parametrize("family", [Family.MOVEMENT, Family.REDUCTION, Family.WINDOW, Family.CONTRACTION])
def test_every_operation_of_a_family_is_computed_somewhere(family: Family) -> None:
    aliases = stating(lambda t: t.storage is Storage.ALIAS)
    known = {*evaluate._RULES, *schedule._SCHEDULES, *aliases, *LOWERED_BEFORE}

    assert {op.name for op in OPS.values() if op.family is family} - known == set()


def test_an_operation_without_an_entry_says_so_with_its_layer() -> None:
    b = Builder()
    x, y = (b.input(name, TensorType.of("f32", 3, 3)) for name in "xy")
    sides = {"lhs_batching": (), "rhs_batching": (), "lhs_contracting": (1,), "rhs_contracting": (0,)}
    with b.layer("dense"):
        product = b("dot_general", x, y, **sides)
    b.output(product, "z")
    (node,) = b.build().nodes

    with pytest.raises(UnsupportedError, match="layer 'dense': dot_general cannot be part of a fused kernel"):
        schedule.schedule(node, get_target("x86-64-v3"))
