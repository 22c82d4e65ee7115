"""What the tests of remote files share."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from sr3d.io.remote import RemoteConfig

BODY = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()
PATH = "data/shard-000000.tar"


def quick_config(folder: Path) -> RemoteConfig:
    """No pauses, three retries; a cache that does not exist yet."""
    return RemoteConfig(cache=folder / "cache", retries=3, timeout=20.0, backoff=0.0)


def left(config: RemoteConfig) -> list[str]:
    """What lies in the cache, besides locks."""
    return sorted(p.name for p in (config.cache / "shards").glob("*") if p.suffix != ".lock")


def numbered(count: int, length: int = 1000) -> dict[str, bytes]:
    return {f"{i}.tar": bytes([i]) * length for i in range(count)}
