"""`python redis_ttl.py KEY`: print the remaining life of a key in the demo's Redis."""

import json
import pathlib
import sys

import redis

with redis.Redis.from_url(pathlib.Path("redis.url").read_text()) as client, client.pipeline() as pipeline:
    (seconds, microseconds), left = pipeline.time().pttl(sys.argv[1]).execute()
ends_at = round(seconds + microseconds / 1e6 + left / 1e3, 3)
sys.stdout.write(json.dumps({"ttl_seconds": left / 1e3, "ends_at": ends_at}) + "\n")
