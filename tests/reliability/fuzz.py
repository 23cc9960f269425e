"""Give random inputs to the public API and count what becomes of them.

Run by name: `python tests/reliability/fuzz.py [NAMES] --inputs 50000 --seed 0`. An input is accepted and checked by an
oracle, or refused with an error of alignkit that says what the matter is. Everything else is a failure: another
exception, a wrong result, a message that does not help, changed inputs or settings, a hang, a crash. Each failure is
printed with the command that runs it again, and the script ends with status 1.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection

import torch

from fuzzers.all import FUZZERS, shared_out
from fuzzers.engine import FAILURES, OUTCOMES, SECONDS, Verdict, run_case

MEMORY = 6 << 30
"""Bytes that the process of a fuzzer may take."""
SHOWN = 20
"""Kinds of failures of one fuzzer that are printed."""


def command(name: str, seed: int, index: int) -> str:
    return f"python tests/reliability/fuzz.py {name} --seed {seed} --index {index}"


def work(name: str, seed: int, start: int, stop: int, results: Connection) -> None:
    """Send the verdict of each input; memory is bounded, so that a bomb is an error here and not of the machine."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for index in range(start, stop):
        results.send(run_case(FUZZERS[name], seed, index)[1])


def verdicts(name: str, seed: int, count: int) -> list[Verdict]:
    """Run a fuzzer in a process of its own; where that crashes or hangs for good, another one goes on behind it."""
    found: list[Verdict] = []
    context = multiprocessing.get_context("forkserver")
    while len(found) < count:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(name, seed, len(found), count, sender))
        process.start()
        sender.close()
        try:
            while len(found) < count and receiver.poll(2 * SECONDS):
                found.append(receiver.recv())
            if len(found) < count:
                process.kill()
                found.append(Verdict("hang", f"no answer in {2 * SECONDS} s, also not to a signal"))
        except EOFError:
            process.join()
            found.append(Verdict("crash", f"the process ended with {process.exitcode}"))
        process.join()
    return found


def report(name: str, seed: int, found: list[Verdict]) -> None:
    """Print the failures of a fuzzer, one of each kind in full."""
    alike: dict[str, list[int]] = {}
    for index, verdict in enumerate(found):
        if verdict.outcome in FAILURES:
            alike.setdefault(f"{verdict.outcome}: {verdict.detail}", []).append(index)
    for kind, indices in list(alike.items())[:SHOWN]:
        print(f"\n{len(indices)} times {kind}\n  {command(name, seed, indices[0])}")
    if len(alike) > SHOWN:
        print(f"\n... and {len(alike) - SHOWN} more kinds of failures of {name}")


def run_all(names: list[str], inputs: int, seed: int) -> bool:
    """Run fuzzers, print their table, and return whether nothing failed."""
    print(f"{'fuzzer':<14}" + "".join(f"{outcome:>9}" for outcome in ("inputs", *OUTCOMES, "seconds")), flush=True)
    results = {}
    totals: collections.Counter[str] = collections.Counter()
    for name, count in shared_out(names, inputs).items():
        begun = time.perf_counter()
        results[name] = verdicts(name, seed, count)
        counts = collections.Counter(verdict.outcome for verdict in results[name])
        counts |= {"inputs": count, "seconds": round(time.perf_counter() - begun)}
        totals += counts
        print(line(name, counts), flush=True)
    print(line("all", totals))
    for name, found in results.items():
        report(name, seed, found)
    return not any(totals[outcome] for outcome in FAILURES)


def line(name: str, counts: collections.Counter[str]) -> str:
    return f"{name:<14}" + "".join(f"{counts[column]:>9}" for column in ("inputs", *OUTCOMES, "seconds"))


def main() -> None:
    """Print a line for each fuzzer, then its failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"fuzzers: {', '.join(FUZZERS)}; default: all")
    parser.add_argument("--inputs", type=int, default=50_000, help="number of inputs, shared out among the fuzzers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, help="run this one input of one fuzzer, and show it")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in FUZZERS]:
        parser.error(f"no fuzzer is named {unknown[0]!r}. Known: {', '.join(FUZZERS)}")
    if given.index is None:
        sys.exit(0 if run_all(given.names or list(FUZZERS), given.inputs, given.seed) else 1)
    (name,) = given.names
    case, verdict = run_case(FUZZERS[name], given.seed, given.index)
    print(f"{case.shown}\n{verdict.outcome}: {verdict.detail}\n{verdict.trace}".rstrip())
    sys.exit(1 if verdict.outcome in FAILURES else 0)


if __name__ == "__main__":
    main()
