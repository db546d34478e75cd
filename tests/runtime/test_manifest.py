"""Manifests: JSON and back, and a named field for everything that is wrong."""

from __future__ import annotations

import contextlib
import json
import random

import pytest

from lepton_jit.errors import FileFormatError, LeptonError
from lepton_jit.runtime.dimensions import dim_value, parse_polynomial
from lepton_jit.runtime.manifest import Manifest, ManifestBuffer, ManifestStep, Tensor

FULL = Manifest(
    name="digits/train",
    prefix="digits",
    target="x86-64-v3",
    architecture="x86_64",
    features=("avx2", "fma"),
    symbols=("N", "T"),
    inputs=(Tensor("x", "f32", ("N", "2*T + 1", 28)), Tensor("y", "i32", ("N",))),
    outputs=(Tensor("loss", "f32", (), "output"), Tensor("w", "f32", (3, 4), "weight")),
    params=(Tensor("w", "f32", (3, 4), "weight"),),
    donations={1: 0},
    steps=(ManifestStep("matmul", "dense", "24*N", 100),),
    buffers=(ManifestBuffer("t", "4*N*T", 0, 3, "dense"),),
    errors={1: "label out of range: é"},
)


def test_a_manifest_survives_json() -> None:
    assert Manifest.from_json(FULL.to_json()) == FULL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "expected version 2, got 3"),
        ({"name": None}, "manifest.name: expected str, got NoneType"),
        ({"symbols": ["N"]}, "'T' is used as a dimension, but is not among the symbols"),
        ({"inputs": [{"name": "x"}]}, r"manifest.inputs\[0\]: 'dtype' is missing"),
        (
            {"inputs": [{"name": "x", "dtype": "f33", "shape": [], "role": ""}]},
            r"inputs\[0\].dtype: expected one of f16, ",
        ),
        (
            {"outputs": [{"name": "x", "dtype": "f32", "shape": ["N**2"], "role": ""}]},
            r"outputs\[0\].shape: expected a",
        ),
        (
            {"outputs": [{"name": "x", "dtype": "f32", "shape": [1.5], "role": ""}]},
            r"outputs\[0\].shape: expected an int",
        ),
        ({"donations": [[1, 1]]}, "no output 1 or no parameter 1"),
        ({"donations": [[1]]}, "donations: expected pairs of int and int"),
        (
            {"buffers": [{"name": "t", "size": 4, "first": 3, "last": 2, "layer": "", "per_thread": False}]},
            "expected 0 <= first <= last",
        ),
        ({"errors": {}}, "manifest.errors: expected list, got dict"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        Manifest.from_json(json.dumps(json.loads(FULL.to_json()) | change))


def test_a_thousand_mutated_texts_give_an_error_or_a_manifest() -> None:
    rng = random.Random(0)
    text = FULL.to_json()
    for _ in range(1000):
        position = rng.randrange(len(text))
        mutated = text[:position] + rng.choice(['"', "[", "}", "9", "-", "*", ""]) + text[position + rng.randrange(3) :]
        with contextlib.suppress(LeptonError):
            assert isinstance(Manifest.from_json(mutated), Manifest)


@pytest.mark.parametrize("text", ["[]", "1", "", "{", "[" * 100_000, '{"version":1}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(FileFormatError, match="manifest"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("N", 3), ("2*N + 1", 7), ("-N + 4", 1), ("N*N*M - 2", 43), ("(N + 1)*(N - 1)", 8), ("3 - (M - 1)", -1)],
)
def test_polynomials_have_values(text: str, expected: int) -> None:
    assert dim_value(text, {"N": 3, "M": 5}) == expected


@pytest.mark.parametrize(
    "text", ["", "N +", "*N", "N N", "N/2", "(N", "N)", "2**N", "__import__('os')", "(" * 50, "1" * 30]
)
def test_what_is_no_polynomial_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_polynomial(text)


def test_polynomials_are_solved_for_one_symbol() -> None:
    poly = parse_polynomial("2*N + M")
    assert poly.solve("N", 9, {"M": 1}) == 4
    assert poly.solve("N", 8, {"M": 1}) is None
    assert parse_polynomial("N*N").solve("N", 9, {}) is None
