"""Every rewrite says its law."""

from __future__ import annotations

import pytest

from lepton_jit.ir.op import OPS
from lepton_jit.passes.base import PASSES
from lepton_jit.passes.rewriting.algebra import log_of_softmax
from lepton_jit.passes.rewriting.algebra_batch_norm import fold_batch_norm
from lepton_jit.passes.rewriting.algebra_movement import pull_movement
from lepton_jit.passes.rewriting.canonicalize import CANONICAL_RULES

RULES = {rule for rules in CANONICAL_RULES.values() for rule in rules} | {
    log_of_softmax,
    fold_batch_norm,
    pull_movement,
}


@pytest.mark.parametrize("rule", sorted(RULES, key=lambda rule: rule.__name__), ids=lambda rule: rule.__name__)
def test_a_rule_states_its_law(rule: object) -> None:
    assert (rule.__doc__ or "").startswith("law: ")


def test_rules_stand_under_operations_that_exist() -> None:
    assert set(CANONICAL_RULES) - set(OPS) == set()


def test_every_pass_has_a_docstring() -> None:
    assert [name for name, pass_ in PASSES.items() if not pass_.__doc__] == []
