"""Two hundred clients that connect and die without a word: what does a server hold afterwards?

python -m benchmarks.churn [--deaths 200]
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from server.settings import Settings
from tests.server.churn import Held, churn
from tests.server.conftest import running

SETTINGS = Settings(max_sessions=8, silence_timeout_s=1.0, idle_timeout_s=3.0, handshake_timeout_s=5.0)


async def measure(deaths: int) -> tuple[Held, Held]:
    async with running(SETTINGS) as server:
        return await churn(server, deaths)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deaths", type=int, default=200)
    args = parser.parse_args()
    before, after = asyncio.run(measure(args.deaths))
    for name in ("tasks", "threads", "descriptors", "memory_mb"):
        was, is_now = getattr(before, name), getattr(after, name)
        print(f"{name:12} {was:8.1f} after the first few, {is_now:8.1f} after {args.deaths} more")
    grown = (after.memory_mb - before.memory_mb) / args.deaths
    print(f"memory grew by {grown:.3f} MB a death (server and clients are one process here)")
    return (
        0
        if (after.tasks, after.threads, after.descriptors)
        <= (
            before.tasks,
            before.threads,
            before.descriptors,
        )
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
