"""The Redis user that docs/deployment.md creates has the permissions that the store and the gateway need."""

import asyncio
import pathlib
import shlex

from revocation_service.settings import StoreSettings
from revocation_service.store.exchanges import Exchanges
from revocation_service.store.preflight import preflight
from revocation_service.store.topology import topology
from revocation_service.store.windows import Window, Windows
from tests.redis_processes import standalone
from tests.store.conftest import missing, open_store

DEPLOYMENT = pathlib.Path(__file__).parents[2] / "docs" / "deployment.md"


async def test_the_documented_user_is_refused_nothing() -> None:
    """Writes, checks, heartbeats, restores, rescans, preflight and windows work as that user; ACL LOG stays empty."""
    command = DEPLOYMENT.read_text().partition("$ redis-cli ACL SETUSER")[2].partition("```")[0]
    async with standalone() as redis:
        assert await redis.command("ACL", "SETUSER", *shlex.split(command.replace("\\\n", " ")))
        url = f"redis://revocation:a-long-password@{redis.address}/0?client_name=store"
        async with open_store(url, key_prefix="", wait_replicas=1) as opened:
            await opened.revoke_all(["a", "b"])
            exchanges = Exchanges(opened.store, pending_seconds=5, grace_seconds=3)
            end = (await exchanges.beat(None, None, must_write=True)).end
            assert end is not None
            held = list((await opened.store.get([("jti", "a"), ("jti", "b")])).found)
            await redis.command("FLUSHALL")
            assert (await exchanges.beat("an epoch", end, must_write=True)).refused == ""
            await exchanges.read(end)
            await exchanges.scan(lambda _: True)
            assert await exchanges.take_turn()
            assert await exchanges.take_turn()
            assert await exchanges.missing(held) == held
            assert await exchanges.restore(held) == 2
            await exchanges.release_turn()
            assert await exchanges.take_rescan(300)
            await exchanges.append(held, foreign_found=False)
            assert not await missing(opened, ["a", "b"])
            warnings = await asyncio.gather(*(preflight(opened.store) for _ in range(2)))
            assert warnings == [("replicas_short",)] * 2
            assert 0 < await redis.command("TTL", opened.store.keyspace.settings) <= 60
        windows = Windows(topology(StoreSettings(url)))
        await windows.hit(Window("address", 5, 60))
        await windows.probe()
        await windows.aclose()
        assert await redis.command("ACL", "LOG") == []
