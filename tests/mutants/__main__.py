"""``python -m tests.mutants``: which changes of the code no test notices.

Exits with 1 if a change that changes more than rounding went unnoticed, or more than a tenth of all did; with 2 if a
list is stale or the tests fail without any change.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from tests.mutants import runner
from tests.mutants.changes import LISTS, ROOT, Change, StaleList, read, remember, remembered
from tests.mutants.runner import Outcome

#: The share of the changes that are not equivalent which the tests have to notice.
ENOUGH = 0.9


def main() -> int:
    arguments = _parsed()
    lists = sorted(LISTS.glob("*.toml"))
    if arguments.only:
        lists = [path for path in lists if path.stem in arguments.only]
    try:
        changes = read(lists, noticed_by=remembered())
    except StaleList as error:
        print(f"A list does not fit the tree. {error}", file=sys.stderr)
        return 2
    if arguments.change:
        changes = [change for change in changes if change.name in arguments.change]
    runner.prepare()
    begun = time.monotonic()
    counted = [change for change in changes if change.equivalent is None]
    with runner.copies(ROOT, arguments.jobs) as copies:
        if not arguments.no_baseline:
            whole = runner.run(_baseline(counted), copies, 10 * arguments.limit, _quiet, apply=False)
            failed = [outcome for outcome in whole if outcome.noticed or outcome.broken]
            for outcome in failed:
                print(f"Fails without any change: {' '.join(outcome.change.tests)} ({outcome.by})", file=sys.stderr)
            if failed:
                return 2
        outcomes = runner.run(counted, copies, arguments.limit, _say)
    if arguments.remember:
        remember((o.change, o.by) for o in outcomes if o.noticed and "::" in o.by and " " not in o.by.split("[")[0])
    text, passed = report(changes, outcomes)
    text += f"\n{time.monotonic() - begun:.0f} s, {arguments.jobs} at a time.\n"
    print(f"\n{text}", end="")
    if arguments.report:
        arguments.report.write_text(text)
    return 0 if passed else 1


def report(changes: list[Change], outcomes: list[Outcome]) -> tuple[str, bool]:
    """The table by file, the unnoticed and the equivalent changes; and whether enough were noticed."""
    rows: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        rows[outcome.change.file].append(outcome)
    lines = [f"{'file':56} {'logic':>9} {'rounding':>9} {'all':>9}"]
    for file, own in [*sorted(rows.items()), ("all", outcomes)]:
        cells = (_noticed(own, kinds) for kinds in (("logic",), ("rounding",), ("logic", "rounding")))
        lines.append(f"{file:56} " + " ".join(f"{cell:>9}" for cell in cells))
    missed = [outcome for outcome in outcomes if not outcome.noticed]
    lines += ["", f"Unnoticed: {len(missed)}"]
    lines += [
        f"  {o.change.kind:8} {o.change.file}: {o.change.name}{' (not run: ' + o.by + ')' if o.broken else ''}"
        for o in missed
    ]
    equivalent = [change for change in changes if change.equivalent is not None]
    lines += ["", f"Equivalent, not counted: {len(equivalent)}"]
    lines += [f"  {change.file}: {change.name}: {change.equivalent}" for change in equivalent]
    logic = [o for o in missed if o.change.kind == "logic" or o.broken]
    return "\n".join(lines) + "\n", not logic and len(missed) <= (1.0 - ENOUGH) * len(outcomes)


def _noticed(outcomes: list[Outcome], kinds: tuple[str, ...]) -> str:
    own = [outcome for outcome in outcomes if outcome.change.kind in kinds]
    return f"{sum(outcome.noticed for outcome in own)}/{len(own)}" if own else "-"


def _baseline(changes: list[Change]) -> list[Change]:
    """All tests that are named, each once, as changes that change nothing."""
    tests = dict.fromkeys(test for change in changes for test in change.tests)
    whole = {test for test in tests if "::" not in test}
    return [
        replace(changes[0], tests=(test,), likely=None)
        for test in tests
        if test in whole or test.split("::")[0] not in whole
    ]


def _say(outcome: Outcome) -> None:
    word = "not run" if outcome.broken else "noticed" if outcome.noticed else "UNNOTICED"
    change = outcome.change
    print(f"{word:9} {outcome.seconds:6.1f} s  {change.file}: {change.name}  {outcome.by}", flush=True)


def _quiet(outcome: Outcome) -> None:
    del outcome


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="LIST", help="names of lists, such as rigor")
    parser.add_argument("--change", nargs="*", metavar="NAME", help="names of changes")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="children at a time")
    parser.add_argument(
        "--limit", type=float, default=240.0, help="seconds of processor time before a test counts as failed"
    )
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests on the unchanged tree first")
    parser.add_argument(
        "--remember", action="store_true", help="keep which test noticed each change, which then runs first"
    )
    parser.add_argument("--report", type=Path, help="a file for the table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
