"""Mutation testing of what decides: small faults are put into the code, and the tests beside it must notice. A script.

    pip install -e '.[test,mutation]'
    python tests/bench/mutants.py                           280 mutants drawn at random, half an hour on one core
    python tests/bench/mutants.py --files judge rules/      what the names contain
    python tests/bench/mutants.py --sample 0                every mutant, several hours

One mutant is one change by an operator of Cosmic Ray: a comparison, a sign, a constant, a condition. The file stays as
it is: a child process imports the mutated text in its place and runs the tests that TARGETS names, the quick ones
first. Which mutants are drawn depends on the seed and on the text of each line alone, so an edit elsewhere hardly
changes the sample.

Survivors are listed. One that no test can notice stands in equivalent_mutants.yaml with the reason, and is not run; the
exit code is 1 if another one survives.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # Before torch is imported.
    os.environ[name] = "1"

from tests.bench.mutation import Mutant, list_mutants, read_equivalents  # noqa: E402

RULES = (
    "rules/test_compare.py rules/test_numbers.py rules/test_bound.py rules/test_conditions.py "
    "rules/test_at_most_at_least.py rules/test_not_worse.py rules/test_retains.py rules/test_basis.py test_judge.py"
)
TOKENS = "measures/test_declared_spreads.py measures/test_token_measures.py"
STATISTICS = "statistics/test_statistics.py"
TARGETS = {
    "judge.py": "test_judge_decisions.py test_judge.py test_failure_class.py",
    "rules/__init__.py": RULES,
    "rules/_bound.py": RULES,
    "rules/_compare.py": RULES,
    "rules/_conditions.py": RULES,
    "rules/_digits.py": RULES,
    "rules/_limits.py": RULES,
    "rules/_numbers.py": RULES,
    "rules/at_least.py": RULES,
    "rules/at_most.py": RULES,
    "rules/not_worse.py": RULES,
    "rules/retains.py": RULES,
    "statistics/betting.py": "statistics/test_betting.py",
    "statistics/bounded.py": f"statistics/test_bounded.py {STATISTICS}",
    "statistics/calibration.py": "statistics/test_calibration.py",
    "statistics/group_sequential.py": "statistics/test_group_sequential.py",
    "statistics/interval.py": f"statistics/test_interval.py {STATISTICS}",
    "statistics/intervals.py": "statistics/test_means.py statistics/test_group_sequential.py",
    "statistics/means.py": f"statistics/test_means.py {STATISTICS}",
    "statistics/multiplicity.py": "statistics/test_multiplicity.py",
    "statistics/proportions.py": "statistics/test_exact_and_score_intervals.py statistics/test_proportions.py",
    "statistics/quantiles.py": f"statistics/test_quantiles.py {STATISTICS}",
    "measures/_common/item_scores.py": "measures/test_tasks.py",
    "measures/calibration.py": f"measures/test_calibration.py {TOKENS}",
    "measures/divergence.py": f"measures/test_divergence.py {TOKENS}",
    "measures/logits.py": f"measures/test_logits.py {TOKENS}",
    "measures/perplexity.py": f"measures/test_perplexity.py {TOKENS}",
    "measures/tasks.py": "measures/test_tasks.py",
    "lockstep/logit_statistics.py": "lockstep/test_logit_statistics.py",
    "models/sanity.py": "models/test_sanity.py models/test_loading.py",
    "tables/journal.py": "tables/test_journal.py tables/test_foreign_files.py tables/test_store.py",
}
"""The files that decide, below harness/, and the tests below tests/ that must notice a fault in them."""

PATIENCE = 3.0
"""A mutant whose tests take so many times as long as without it (and half a minute) hangs; that was noticed."""


class Outcome(NamedTuple):
    """How the tests ended: 0 they passed, 1 one failed, 2 they could not be collected, -1 they hung."""

    code: int
    seconds: float
    said: str


def run_tests(file: str, source: str, limit: float) -> Outcome:
    """The tests of ``file`` with ``source`` in its place, in a child process that has the libraries already."""
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os.setsid()
            _test_and_exit(file, source, output.fileno())
        status = None
        while status is None:
            time.sleep(0.02)
            ended, waited = os.waitpid(child, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(waited)
            elif time.monotonic() - started > limit:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                status = -1
        output.seek(0)
        return Outcome(status, time.monotonic() - started, output.read().decode(errors="replace"))


def _test_and_exit(file: str, source: str, output: int) -> None:
    """Never returns: what stands above it on the stack belongs to the parent."""
    code = 3
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        import pytest

        from tests.bench.mutation import import_instead

        import_instead(ROOT / "harness" / file, source)
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", "--tb=line"]
        code = int(pytest.main([*options, *(f"{ROOT}/tests/{test}" for test in TARGETS[file].split())]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def load_libraries() -> None:
    """Import once what every child needs; nothing of harness/, which each child imports with its mutant."""
    import datasets  # noqa: F401
    import hypothesis
    import lm_eval  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # One failing example is enough.
    hypothesis.settings.register_profile("mutants", derandomize=True, deadline=None, phases=phases, database=None)
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "harness")
    assert not loaded, loaded


def draw(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """``count`` mutants (0: all), at most one at a place, in the order of the files."""

    def rank(mutant: Mutant) -> bytes:
        text = f"{seed} {mutant.file} {mutant.line} {mutant.operator} {mutant.within}"
        return hashlib.sha256(text.encode()).digest()

    if not count:
        return list(mutants)
    places: dict[tuple[str, int, int], Mutant] = {}
    for mutant in sorted(mutants, key=rank):
        places.setdefault((mutant.file, mutant.number, mutant.column), mutant)
    drawn = set(list(places.values())[:count])
    return [mutant for mutant in mutants if mutant in drawn]


def try_mutants(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, Outcome]]:
    """Each mutant and how its tests ended. The tests of its file must pass without it."""
    unchanged: dict[str, Outcome] = {}
    for mutant in mutants:
        if mutant.file not in unchanged:
            source = (ROOT / "harness" / mutant.file).read_text(encoding="utf-8")
            unchanged[mutant.file] = before = run_tests(mutant.file, source, limit=1800)
            if before.code != 0:
                raise SystemExit(f"the tests of {mutant.file} do not pass as it is:\n{before.said}")
        yield mutant, run_tests(mutant.file, mutant.source, PATIENCE * unchanged[mutant.file].seconds + 30)


def describe(mutant: Mutant) -> str:
    return f"{mutant.file}:{mutant.number}\n  - {mutant.line}\n  + {mutant.change.becomes}"


def report(mutant: Mutant, outcome: Outcome) -> None:
    word = {0: "survived", -1: "hung"}.get(outcome.code, "killed")
    failed = [line for line in outcome.said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(f"{word} after {outcome.seconds:.0f} s: {describe(mutant)}", *failed[:1], sep="\n  ", flush=True)


def main(names: Collection[str], count: int, seed: int) -> int:
    mutants = [
        mutant
        for file in TARGETS
        if not names or any(name in file for name in names)
        for mutant in list_mutants(ROOT / "harness", file)
    ]
    reasons = read_equivalents()
    drawn = draw(mutants, count, seed)
    tried = [mutant for mutant in drawn if mutant.change not in reasons]
    load_libraries()
    words: Counter[str] = Counter()
    survivors = []
    for mutant, outcome in try_mutants(tried):
        report(mutant, outcome)
        words["survived" if outcome.code == 0 else "killed"] += 1
        survivors += [mutant] if outcome.code == 0 else []
    print(
        f"{len(drawn)} of {len(mutants)} mutants: {words['killed']} killed, {len(drawn) - len(tried)} equivalent, "
        f"{words['survived']} survived ({words['killed'] / max(1, len(tried)):.1%} of those that differ killed)"
    )
    for mutant in survivors:
        print(describe(mutant))
    return 1 if survivors else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="*", default=[], help="parts of names of files; all files if none is given")
    parser.add_argument("--sample", type=int, default=280, help="how many mutants are drawn; 0: all of them")
    parser.add_argument("--seed", type=int, default=13)
    asked = parser.parse_args()
    sys.exit(main(asked.files, asked.sample, asked.seed))
