"""The independent checker, the parser under it, and the committed theorem lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from miniprover import evaluate, generate
from miniprover.check import Wrong, check_countermodel, check_proof, check_result
from miniprover.formula import parse, read_theorems

# p=0 q=1 p->q=2 (p->q)->p=3 root=4
PEIRCE = parse("((p -> q) -> p) -> p")
PROOF = "+3:4 -0:4 c1 +2:2 x3 -2:3 x2"


def test_a_right_proof_passes() -> None:
    assert check_proof(PEIRCE, PROOF) == 1
    assert check_proof(PEIRCE, "+3:4 -0:4 +2:2 x3") == 0


@pytest.mark.parametrize("gone", [0, 1, 2, 4, 6])
def test_a_proof_with_a_step_missing_is_refused(gone: int) -> None:
    tokens = PROOF.split()
    del tokens[gone]
    with pytest.raises(Wrong):
        check_proof(PEIRCE, " ".join(tokens))


@pytest.mark.parametrize(
    ("proof", "why"),
    [
        ("", "open branch"),
        ("-3:4", "does not follow"),
        ("+1:4", "does not follow"),
        ("+3:4 x4", "not closed"),
        ("+3:4 -0:4 +2:2 x3 x3", "after the end"),
        ("+3:4 -0:4 c1 +2:2 x3", "open branch"),
        ("+3:4 -0:4 c0 x4", "has a value"),
        ("+9:4", "no such subformula"),
        ("+3:-1", "no such subformula"),
        ("+3:0", "an atom"),
        ("+3", "not a token"),
        ("q3", "not a token"),
    ],
)
def test_a_wrong_proof_is_refused_with_the_reason(proof: str, why: str) -> None:
    with pytest.raises(Wrong, match=why):
        check_proof(PEIRCE, proof)


def test_a_non_theorem_has_no_proof_but_a_countermodel() -> None:
    formula = parse("p | q -> p & q")
    check_countermodel(formula, "p ~q")
    for model in ("p q", "p", "p ~p q", "p q r", ""):
        with pytest.raises(Wrong):
            check_countermodel(formula, model)


def test_a_result_must_fit_the_known_status() -> None:
    check_result(PEIRCE, "theorem", {"outcome": "proved", "proof": PROOF})
    with pytest.raises(Wrong, match="non-theorem"):
        check_result(PEIRCE, "non-theorem", {"outcome": "proved", "proof": PROOF})
    with pytest.raises(Wrong, match="unknown outcome"):
        check_result(PEIRCE, "theorem", {"outcome": "trust me"})


@pytest.mark.parametrize("text", ["", "p &", "(p", "p q", "p $ q", "p & -> q", "~", ")"])
def test_bad_formulas_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"unexpected|missing|expected"):
        parse(text)


def test_connectives_group_as_documented() -> None:
    assert parse("p -> q -> p & q | r") == parse("p -> (q -> ((p & q) | r))")
    assert parse("p <-> q <-> r") == parse("p <-> (q <-> r)")
    assert parse("p | q | r") == parse("(p | q) | r")


@pytest.mark.parametrize(
    ("text", "status"),
    [("p | ~p", True), ("p -> q", False), ("(p <-> q) <-> (q <-> p)", True), ("(p -> q) -> (~p -> ~q)", False)],
)
def test_truth_tables_decide(text: str, status: bool) -> None:
    assert parse(text).is_theorem() is status


def test_truth_tables_of_several_formulas_can_be_combined() -> None:
    p, q = (parse(name).truth_table(["p", "q"]) for name in "pq")
    assert (p, q, parse("p & q").truth_table(["p", "q"])) == (0b1010, 0b1100, p & q)


def test_every_committed_formula_has_the_status_that_its_truth_table_says(example: Path) -> None:
    theorems = read_theorems(sorted((example / "data").glob("*.txt")))
    assert len(theorems) > 350
    assert len({theorem.id for theorem in theorems}) == len(theorems)
    assert len({theorem.text for theorem in theorems}) == len(theorems), "nothing held out is trained on"
    wrong = [t.id for t in theorems if parse(t.text).is_theorem() != (t.status == "theorem")]
    assert wrong == []


def test_pigeonhole_is_a_theorem_exactly_with_more_pigeons_than_holes() -> None:
    assert parse(generate.pigeonhole(3, 2)).is_theorem()
    assert not parse(generate.pigeonhole(3, 3)).is_theorem()


def test_evaluate_fails_when_the_prover_gives_a_wrong_proof(
    tmp_path: Path, example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lying = tmp_path / "lying-prover"
    result = json.dumps({"id": "pelletier-08", "nodes": 1, "outcome": "proved", "cuts": 0, "proof": "+3:4 x4"})
    lying.write_text(
        "#!/bin/sh\n# A stand-in for a prover with a bug: it claims a proof that is none.\n"
        'while [ "$1" != --output ]; do shift; done\n'
        f"echo '{result}' > \"$2\"\n"
    )
    lying.chmod(0o755)
    monkeypatch.setenv("MINIPROVER_PROVER", str(lying))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(example / "data")
    monkeypatch.setattr("sys.argv", ["evaluate", "--iteration", "0"])
    assert evaluate.main() == 1
    assert "pelletier-08: 'x4': the branch is not closed" in capsys.readouterr().err


def test_evaluate_fails_on_request_when_fewer_theorems_are_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proved = {"with": 5, "without": 7}
    monkeypatch.chdir(tmp_path)

    def measure(nodes: int, guidance: list[str | Path]) -> dict[str, object]:
        count = proved["with" if guidance else "without"]
        return {
            "proved": count,
            "theorems": 9,
            "refuted": 0,
            "non_theorems": 0,
            "verified": count,
            "wrong": [],
            "mean_nodes_of_theorems": 1.0,
        }

    monkeypatch.setattr(evaluate, "measure", measure)
    monkeypatch.setattr("sys.argv", ["evaluate", "--iteration", "0", "--require-not-worse"])
    assert evaluate.main() == 3
    proved["with"] = 7
    assert evaluate.main() == 0
