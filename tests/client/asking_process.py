"""A process that keeps asking a client's memory about one token, and prints each answer that differs from the last."""

import asyncio
import sys

from revocation_client import RevocationClient


async def main(url: str) -> None:
    """Ask and print until the process is killed."""
    last: object = "nothing yet"
    async with RevocationClient(url, max_staleness_seconds=1.0) as client:
        while True:
            said = client.is_revoked_now({"jti": "asked-again"})
            if said is not last:
                sys.stdout.write(f"{said}\n")
                sys.stdout.flush()
                last = said
            await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
