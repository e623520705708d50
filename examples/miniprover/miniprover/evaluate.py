# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stage ``evaluate``: what the models are worth, on theorems that no training has seen.

The prover gets a small fixed budget of nodes for each held-out theorem. Every proof and countermodel goes through the
independent checker; one that does not hold fails the stage. The comparison includes the search without any model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from miniprover.check import Wrong, check_result
from miniprover.common import EVAL_RESULTS, HELD_OUT, INTERRUPTED, MODELS, run_prover
from miniprover.formula import parse, read_theorems


def measure(nodes: int, guidance: list[str | Path]) -> dict:
    """Search the held-out list and verify the answers. An unsolved theorem counts with the nodes that it used up."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.jsonl"
        run_prover("search", "--theorems", *HELD_OUT, "--output", output, "--nodes", str(nodes), *guidance)
        results = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    theorems = {theorem.id: theorem for theorem in read_theorems(HELD_OUT)}
    wrong = []
    for result in results:
        theorem = theorems[result["id"]]
        try:
            check_result(parse(theorem.text), theorem.status, result)
        except Wrong as why:
            wrong.append(f"{theorem.id}: {why}")
    solved = [result for result in results if result["outcome"] != "unknown"]
    outcomes = [result["outcome"] for result in results]
    provable = [result for result in results if theorems[result["id"]].status == "theorem"]
    proved = outcomes.count("proved")
    mean_nodes = round(sum(result["nodes"] for result in provable) / len(provable), 2)
    return {
        "summary": f"{proved} of {len(provable)} held-out theorems proved within {nodes} nodes each, "
        f"{mean_nodes} nodes on average; {len(solved) - len(wrong)} answers verified, {len(wrong)} wrong",
        "budget_nodes": nodes,
        "theorems": len(provable),
        "proved": proved,
        "non_theorems": len(results) - len(provable),
        "refuted": outcomes.count("refuted"),
        "verified": len(solved) - len(wrong),
        "wrong": wrong,
        "mean_nodes_of_theorems": mean_nodes,
    }


def save(path: Path, report: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def table(reports: dict[str, dict]) -> str:
    lines = [f"{'':14}{'proved':>12}{'refuted':>12}{'mean nodes':>12}{'verified':>10}"]
    for name, report in reports.items():
        proved = f"{report['proved']}/{report['theorems']}"
        refuted = f"{report['refuted']}/{report['non_theorems']}"
        mean = report["mean_nodes_of_theorems"]
        lines.append(f"{name:14}{proved:>12}{refuted:>12}{mean:>12.1f}{report['verified']:>10}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m miniprover.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--iteration", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=30, help="budget for each theorem")
    parser.add_argument(
        "--require-not-worse",
        action="store_true",
        help="exit with 3 when fewer held-out theorems are proved than one iteration before (or untrained)",
    )
    options = parser.parse_args()
    names = ["untrained", *(f"iteration-{i}" for i in range(options.iteration + 1))]
    guidance: list[str | Path] = []
    try:
        if options.iteration == 0:
            save(EVAL_RESULTS / "untrained.json", measure(options.nodes, []))
        for kind in ("policy", "energy"):
            guidance += [f"--{kind}", MODELS / f"{kind}-{options.iteration}.txt"]
        save(EVAL_RESULTS / f"{names[-1]}.json", measure(options.nodes, guidance))
    except KeyboardInterrupt:
        return INTERRUPTED
    reports = {name: json.loads((EVAL_RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    print(f"held-out theorems, {options.nodes} nodes each\n{table(reports)}", flush=True)
    latest, before = reports[names[-1]], reports[names[-2]]
    if latest["wrong"]:
        print("\n".join(["answers that do not hold:", *latest["wrong"]]), file=sys.stderr)
        return 1
    if options.require_not_worse and latest["proved"] < before["proved"]:
        print(f"worse than {names[-2]}: {latest['proved']} proved instead of {before['proved']}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
