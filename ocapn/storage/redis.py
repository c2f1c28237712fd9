"""Storage in Redis, for several processes of one application: the extra `redis`, with the client `coredis`.

    async with coredis.Redis(unix_socket_path=…) as client:
        async with ocapn.open_peer(netlayers, storage=RedisStorage(client)) as peer: …

Each call is one script, which Redis runs whole: quotas are exact whoever else writes. spec/storage.md has the keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Protocol, final

from ocapn.limits import StorageLimits
from ocapn.storage.backend import Listed, Quota, StorageStats, over_cap, over_quota

#: Expired entries that are removed at each change, and peers and entries of each at a `sweep`.
_BIT: Final = 16
_SWEEP: Final = 100

_SCRIPT: Final = """
local prefix, op, now = KEYS[1], ARGV[1], tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local total, sizes, due = prefix .. 'total', prefix .. 'sizes', prefix .. 'due'
local peer = ARGV[3]

local function name(kind) return prefix .. kind .. ':' .. peer end

local function note()
  local first = redis.call('ZRANGE', name('until'), 0, 0, 'WITHSCORES')
  if first[2] then redis.call('ZADD', due, first[2], peer) else redis.call('ZREM', due, peer) end
end

local function forever(key)
  redis.call('HDEL', name('ttl'), key)
  redis.call('ZREM', name('until'), key)
end

local function remove(key)
  local size = #key + redis.call('HSTRLEN', name('values'), key)
  if redis.call('HDEL', name('values'), key) == 0 then return 0 end
  forever(key)
  redis.call('ZREM', name('keys'), key)
  redis.call('HINCRBY', total, 'keys', -1)
  redis.call('HINCRBY', total, 'size', -size)
  if redis.call('HINCRBY', sizes, peer, -size) == 0 then redis.call('HDEL', sizes, peer) end
  return 1
end

local function expired(key)
  local at = redis.call('ZSCORE', name('until'), key)
  return at and tonumber(at) <= now
end

local function expire(most)
  local keys = redis.call('ZRANGEBYSCORE', name('until'), '-inf', now, 'LIMIT', 0, most)
  for _, key in ipairs(keys) do remove(key) end
  if #keys > 0 then note() end
end

local function sweep(peers, most)
  local of = peer
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, peers)) do
    peer = one
    expire(most)
  end
  peer = of
end

local function get(key)
  if expired(key) then
    remove(key)
    note()
    return false
  end
  local ttl = redis.call('HGET', name('ttl'), key)
  if ttl then redis.call('ZADD', name('until'), now + ttl, key) end
  return redis.call('HGET', name('values'), key)
end

local function number(key, field) return tonumber(redis.call('HGET', key, field) or 0) end

local function full(first)
  local keys, size = 0, 0
  for i = first, #ARGV, 2 do
    local old = redis.call('HEXISTS', name('values'), ARGV[i])
    keys = keys + 1 - old
    size = size + #ARGV[i + 1] - redis.call('HSTRLEN', name('values'), ARGV[i]) + (1 - old) * #ARGV[i]
  end
  local function over(has_keys, has_size, most_keys, most_size)
    return keys > 0 and has_keys + keys > tonumber(most_keys) or size > 0 and has_size + size > tonumber(most_size)
  end
  if over(redis.call('ZCARD', name('keys')), number(sizes, peer), ARGV[5], ARGV[6]) then return 'quota' end
  if over(number(total, 'keys'), number(total, 'size'), ARGV[7], ARGV[8]) then return 'cap' end
  return false
end

if op == 'get' then
  local found = {}
  for i = 4, #ARGV do
    local value = get(ARGV[i])
    if value then
      found[#found + 1] = ARGV[i]
      found[#found + 1] = value
    end
  end
  note()
  return found
end

if op == 'set' then
  local ttl = tonumber(ARGV[4])
  expire(tonumber(ARGV[9]))
  if full(10) then
    sweep(-1, -1)
  end
  local why = full(10)
  if why then return why end
  for i = 10, #ARGV, 2 do
    local key, value = ARGV[i], ARGV[i + 1]
    remove(key)
    redis.call('HSET', name('values'), key, value)
    redis.call('ZADD', name('keys'), 0, key)
    redis.call('HINCRBY', total, 'keys', 1)
    redis.call('HINCRBY', total, 'size', #key + #value)
    redis.call('HINCRBY', sizes, peer, #key + #value)
    if ttl then
      redis.call('HSET', name('ttl'), key, ARGV[4])
      redis.call('ZADD', name('until'), now + ttl, key)
    end
  end
  note()
  return 'set'
end

if op == 'delete' then
  local count = 0
  for i = 4, #ARGV do
    local gone = expired(ARGV[i])
    local was = remove(ARGV[i])
    if not gone then count = count + was end
  end
  note()
  return count
end

if op == 'list' then
  local limit = tonumber(ARGV[6])
  local keys = redis.call('ZRANGEBYLEX', name('keys'), ARGV[4], ARGV[5], 'LIMIT', 0, limit + 1)
  local found = {''}
  if #keys > limit then
    keys[#keys] = nil
    found[1] = keys[#keys]
  end
  for _, key in ipairs(keys) do
    if not expired(key) then
      found[#found + 1] = key
      if ARGV[7] == '' then found[#found + 1] = redis.call('HGET', name('values'), key) end
    end
  end
  return found
end

if op == 'sweep' then return sweep(tonumber(ARGV[4]), tonumber(ARGV[5])) end

return {redis.call('HLEN', sizes), number(total, 'keys'), number(total, 'size')}
"""


class _Client(Protocol):
    def register_script(self, script: str) -> Any: ...


@final
class RedisStorage:
    """An AsyncStorageBackend. `client` is an open `coredis.Redis` of bytes, which is not a cluster's.

    `prefix` begins every key in Redis. `limits.keys` and `limits.size` are a hard cap on what is kept under it for all
    peers together; who would go beyond it gets StorageFull. `now` is a clock in seconds in place of the server's.
    """

    def __init__(
        self,
        client: _Client,
        limits: StorageLimits | None = None,
        *,
        prefix: str = "ocapn:storage:",
        now: Callable[[], float] | None = None,
    ) -> None:
        self._limits = limits or StorageLimits()
        self._script = client.register_script(_SCRIPT)
        self._prefix = prefix.encode()
        self._now = now

    async def get(self, peer: str, key: str) -> bytes | None:
        return (await self.get_many(peer, [key])).get(key)

    async def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        await self.set_many(peer, {key: value}, ttl, quota)

    async def delete(self, peer: str, key: str) -> bool:
        return await self.delete_many(peer, [key]) > 0

    async def get_many(self, peer: str, keys: list[str]) -> dict[str, bytes]:
        found = await self._run("get", peer, *keys)
        return {key.decode(): value for key, value in zip(found[::2], found[1::2], strict=True)}

    async def set_many(self, peer: str, entries: dict[str, bytes], ttl: float | None, quota: Quota) -> None:
        flat = [part for entry in entries.items() for part in entry]
        time = "" if ttl is None else math.ceil(ttl * 1000)
        caps = [quota.keys, quota.size, self._limits.keys, self._limits.size]
        said = await self._run("set", peer, time, *caps, _BIT, *flat)
        if said == b"quota":
            raise over_quota(quota)
        if said == b"cap":
            raise over_cap()

    async def delete_many(self, peer: str, keys: list[str]) -> int:
        return int(await self._run("delete", peer, *keys))

    async def stats(self) -> StorageStats:
        return StorageStats(*await self._run("stats", ""))

    async def sweep(self) -> None:
        """Of up to 100 peers, up to 100 entries each."""
        await self._run("sweep", "", _SWEEP, _SWEEP)

    async def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        begins = prefix.encode()
        first = b"[" + begins
        if after is not None and after.encode() >= begins:
            first = b"(" + after.encode()
        last = b"(" + begins + b"\xff"  # which is in no UTF-8
        end, *found = await self._run("list", peer, first, last, limit, "k" if keys_only else "")
        end = end.decode() or None
        if keys_only:
            return [(key.decode(), None) for key in found], end
        return [(key.decode(), value) for key, value in zip(found[::2], found[1::2], strict=True)], end

    async def _run(self, what: str, peer: str, *arguments: str | bytes | float) -> Any:
        now = "" if self._now is None else math.floor(self._now() * 1000)
        return await self._script.execute(
            keys=[self._prefix],
            args=[one.encode() if isinstance(one, str) else one for one in (what, now, peer, *arguments)],
        )
