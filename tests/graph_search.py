"""Compare many random graphs with the interpreter, in a run that goes on where its log ends.

`python -m tests.graph_search --count 20000 --start 0 --jobs 2 --log graphs.log`
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tests.levels import level
from tests.random_search import search
from tests.test_fuzz import check

# Graphs that one process compiles: what it kept of them goes with it.
CHUNK = 50


class Search:
    """Runs seeds in processes of their own, so that a graph that ends its process is found as well."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def done(self) -> dict[int, str]:
        """What the log says of each seed; texts of failures are indented."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return {int(line.split()[0]): line for line in lines if line[:1].isdigit()}

    def run(self, seeds: Sequence[int]) -> None:
        """Check these seeds; the one under way when a process dies is noted, and the next process goes on behind it."""
        left = list(seeds)
        while left:
            child = multiprocessing.get_context("fork").Process(target=self._check_all, args=(left,))
            child.start()
            child.join()
            done = self.done()
            left = [seed for seed in left if seed not in done]
            if left and child.exitcode:
                died = signal.Signals(-child.exitcode).name if child.exitcode < 0 else f"exit status {child.exitcode}"
                self._note(f"{left.pop(0)} DIED {died}\n")

    def _check_all(self, seeds: Sequence[int]) -> None:
        os.environ["LEPTON_JIT_CACHE"] = "off"
        for seed in seeds:
            target = level(seed)
            try:
                search(lambda case, target=target: check(case, target), [seed])
                self._note(f"{seed} right\n")
            except AssertionError as error:
                text = "".join(f"    {line}\n" for line in str(error).splitlines())
                self._note(f"{seed} DIFFERS {target.name}\n{text}")

    def _note(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args()
    search_all = Search(given.log)
    wanted, done = range(given.start, given.start + given.count), search_all.done()
    left = [seed for seed in wanted if seed not in done]
    with ThreadPool(given.jobs) as pool:
        pool.map(search_all.run, [left[i : i + CHUNK] for i in range(0, len(left), CHUNK)], chunksize=1)
    lines = [search_all.done()[seed] for seed in wanted]
    different = [line for line in lines if not line.endswith(" right")]
    print(f"{len(lines)} graphs, {len(different)} differ: {different}")


if __name__ == "__main__":
    main()
