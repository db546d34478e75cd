"""What compares two checkouts: it sees every other instruction and every other size, and no other name."""

from __future__ import annotations

import json

import pytest

import lepton_jit as lpt
from benchmarks import objects
from benchmarks.objects import compile_graph, differences, masked_manifest, masked_objects, questions, record
from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.target import get_target
from lepton_jit.passes import fuse
from tests.model_arguments import ACTIVATIONS, LAYERS, LOSSES, METRICS, OPTIMIZERS, REGULARIZERS

CALLER = """
declare i64 @"{callee}"(i64)
define hidden i64 @"{name}"(i64 %x) {{
  %doubled = mul i64 %x, {factor}
  %result = call i64 @"{callee}"(i64 %doubled)
  ret i64 %result
}}
"""
CALLEES = 'define hidden i64 @"{}"(i64 %x) {{\n  ret i64 %x\n}}\ndefine hidden i64 @"{}"(i64 %x) {{\n  ret i64 0\n}}\n'
GRAPH = """graph @main(%x: f32[N,5] input "{x}") {{
  %0 = constant() {{dtype = f32, shape = [], value = {value}}} : f32[]
  %1 = broadcast_in_dim(%0) {{dimensions = [], shape = [N, 5]}} : f32[N,5]
  %2 = add(%x, %1) : f32[N,5]
  %3 = reduce(%2) {{dimensions = [1], kind = "add"}} : f32[N]
  return %3 "y"
}}"""


def fingerprints(
    target_name: str, callees: tuple[str, str], callee: str, name: str = "f", factor: int = 3
) -> list[str]:
    """Of a program of two objects: one calls what the other one defines, or what neither does."""
    target = get_target(target_name)
    texts = (CALLEES.format(*callees), CALLER.format(callee=callee, name=name, factor=factor))
    return masked_objects([compile_object(text, target) for text in texts])


def record_of(text: str) -> dict:
    programs, _ = compile_graph(lpt.parse(text), "x86-64-v3", None)
    return record(programs)


@pytest.mark.parametrize("target", objects.TARGETS)
def test_names_of_symbols_have_no_part_in_an_object(target: str) -> None:
    expected = fingerprints(target, ("a", "b"), "a")

    assert fingerprints(target, ("zz_longer", "b"), "zz_longer", name="another") == expected


@pytest.mark.parametrize("target", objects.TARGETS)
def test_another_constant_and_another_callee_are_other_objects(target: str) -> None:
    first, second = fingerprints(target, ("a", "b"), "a")

    assert fingerprints(target, ("a", "b"), "a", factor=5)[0] == first
    others = [
        fingerprints(target, ("a", "b"), "a", factor=5)[1],
        fingerprints(target, ("a", "b"), "b")[1],
        fingerprints(target, ("a", "b"), "lpt_enter")[1],
        fingerprints(target, ("a", "b"), "lpt_leave")[1],
    ]
    assert len({second, *others}) == 5


def test_a_manifest_keeps_which_names_are_the_same() -> None:
    def manifest(*names: str, size: int = 4) -> str:
        return masked_manifest(json.dumps({"prefix": "main", "buffers": [{"name": n, "size": size} for n in names]}))

    assert manifest("a", "b", "a") == manifest("x", "y", "x")
    assert manifest("a", "b", "a") != manifest("a", "b", "b")
    assert manifest("a") != manifest("a", size=8)


def test_a_graph_has_the_same_record_whatever_its_inputs_are_called() -> None:
    assert record_of(GRAPH.format(x="x", value=1.5)) == record_of(GRAPH.format(x="another", value=1.5))


def test_another_number_is_another_object_with_the_same_manifest() -> None:
    one, other = (record_of(GRAPH.format(x="x", value=value)) for value in (1.5, 2.5))

    assert [name for name in one if one[name] != other[name]] == ["main objects", "main text"]


def test_another_decision_of_a_pass_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = record_of(GRAPH.format(x="x", value=1.5))
    monkeypatch.setattr(fuse, "_is_duplicated", lambda node: False)

    after = record_of(GRAPH.format(x="x", value=1.5))

    assert [name for name in before if before[name] != after[name] and "text" not in name] == [
        "main objects",
        "main manifest",
    ]


def test_what_is_looked_at_is_what_compile_links() -> None:
    model = lpt.Sequential([lpt.Dense(3, activation="tanh", input_shape=(4,))])
    executable = lpt.compile(model).executable

    programs, _ = compile_graph(model.trace(), get_target("native").name, None)

    assert masked_objects(programs["main"].objects) == masked_objects(executable.main.objects)
    assert masked_objects(programs["prepare"].objects) == masked_objects(executable.prepare.objects)


def test_only_what_runs_is_a_difference() -> None:
    def found(**programs: dict) -> dict:
        return {"llvm": "22", "programs": programs}

    before = found(a={"objects": ["1"], "text": "t"}, b={"objects": ["2"], "text": "t"}, gone={"objects": []})
    after = found(a={"objects": ["1"], "text": "u"}, b={"objects": ["3"], "text": "t"}, more={"objects": []})

    wrong, notes = differences(before, after)

    assert wrong == ["lost     gone", "changed  b: objects"]
    assert notes == ["new      more", "text     a: text, and the same objects"]


def test_everything_that_is_registered_is_compiled_with_a_name_of_its_own() -> None:
    keys = [question.key for question in questions()]

    assert len(keys) == len(set(keys))
    kinds = {word for key in keys for word in key.split()}
    registered = {kind for table in (LAYERS, ACTIVATIONS, LOSSES, METRICS, OPTIMIZERS, REGULARIZERS) for kind in table}
    assert registered - kinds == set()


def test_a_call_is_caught_before_it_compiles_and_only_then() -> None:
    model = lpt.Sequential([lpt.Dense(3, input_shape=(4,))])

    graph, typical_batch = objects.caught(lambda: lpt.compile(model, typical_batch=8))

    assert (str(graph), typical_batch) == (str(model.trace()), 8)
    assert lpt.compile(model).outputs[0].shape == ("N", 3)


def test_files_are_compared_and_the_exit_status_tells(tmp_path, capsys) -> None:
    files = [tmp_path / name for name in ("before.json", "after.json")]
    for path, code in zip(files, "12", strict=True):
        path.write_text(json.dumps({"llvm": "22", "programs": {"mlp | aarch64": {"main objects": [code]}}}))

    assert objects.main(["--compare", str(files[0]), str(files[0])]) == 0
    assert objects.main(["--compare", *map(str, files)]) == 1
    assert "changed  mlp | aarch64: main objects" in capsys.readouterr().out
