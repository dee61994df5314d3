"""Run real Redis processes for tests, on loopback: one server, a Sentinel set or a cluster. They end with the test.

Each topology is an async context manager that yields when all of it is ready. Every wait is bounded. If pytest itself
is killed, the kernel kills its Redis processes. All ports, and the cluster bus ports 10000 higher, lie below Linux'
ephemeral range, so that no outgoing connection takes the port of a server that is down.
"""

import asyncio
import contextlib
import datetime
import functools
import ipaddress
import os
import pathlib
import random
import shlex
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from revocation_service.store.embedded import find_server
from revocation_service.store.embedded_child import dying_with_parent

HOST = "127.0.0.1"
SERVICE_NAME = "mymaster"
CLUSTER_SLOTS = 16384
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
PORTS = range(11000 + WORKER, 21000, WORKERS)
"""The ports of this pytest-xdist worker. So no other worker takes the port of a server that is down for a moment."""

CLUSTER_BUS = 10000
POLL_SECONDS = 0.03
WAIT_SECONDS = 30.0
TILT_SECONDS = 90.0
"""A timeout that allows for TILT mode: a sentinel that was paused for two seconds does nothing for the next 30."""
COMMAND_SECONDS = 2.0

T = TypeVar("T")
_taken: set[int] = set()
_random = random.SystemRandom()


class TlsUnsupportedError(Exception):
    """The Redis binary was built without TLS. Check `tls_supported()` first, or use `tls_front`, which needs no TLS."""


async def eventually(check: Callable[[], Awaitable[T | None]], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Retry `check` until it returns a true value, and return that. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = await check()
        except (RedisError, OSError, ClientError) as error:
            last = error
        else:
            if answer:
                return answer
            last = answer
        await asyncio.sleep(POLL_SECONDS)
    raise AssertionError(f"{what}: not within {seconds} s, last: {last!r}")


def free_port() -> int:
    """Return a port that is free, and whose cluster bus port is free too. No port is returned twice."""
    for port in _random.sample(PORTS, len(PORTS)):
        if port not in _taken and _bindable(port) and _bindable(port + CLUSTER_BUS):
            _taken.add(port)
            return port
    raise AssertionError("no free port")


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


@functools.cache
def server_binary() -> str:
    """Return the server that the service would run: REDIS_SERVER_BIN, else the packaged one, else PATH's."""
    return find_server(os.environ.get("REDIS_SERVER_BIN"))[0]


@functools.cache
def tls_supported() -> bool:
    """Return whether the binary supports TLS: only one that does complains about the missing certificate."""
    answer = subprocess.run(
        [server_binary(), "-"], input="port 0\ntls-port 1\n", capture_output=True, text=True, timeout=10, check=False
    )
    return "Failed to configure TLS" in answer.stdout + answer.stderr


@dataclass(frozen=True)
class Certificates:
    """The files of a test CA, and of a certificate that it signed for localhost and 127.0.0.1."""

    ca: pathlib.Path
    certificate: pathlib.Path
    key: pathlib.Path


def make_certificates(directory: pathlib.Path) -> Certificates:
    """Create a CA and a certificate in the directory; both are valid for a day."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("test ca", ca_key, "test ca", ca_key)
    made = Certificates(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    made.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    made.certificate.write_bytes(
        _certificate("localhost", key, "test ca", ca_key).public_bytes(serialization.Encoding.PEM)
    )
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    is_ca = subject == issuer
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    signer = x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
    )
    if is_ca:
        builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(eq=False)
class Process:
    """One Redis process. Its port and its directory stay the same over all its starts."""

    directory: pathlib.Path
    port: int = field(default_factory=free_port)
    password: str | None = None
    socket_path: str | None = None
    certificates: Certificates | None = None
    arguments: tuple[str, ...] = ()
    _popen: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """The TCP URL with the password; with TLS a rediss:// URL, whose CA is `certificates.ca`."""
        scheme = "rediss" if self.certificates else "redis"
        return f"{scheme}://{_credentials(self.password)}{self.address}/0"

    @property
    def unix_url(self) -> str:
        """The URL of the unix socket, which the server must have."""
        assert self.socket_path is not None
        return f"unix://{_credentials(self.password)}{self.socket_path}"

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def client(self, **options: Any) -> Redis:
        """Return a client without retries and with short timeouts; the caller closes it."""
        tls = {"ssl": True, "ssl_ca_certs": str(self.certificates.ca)} if self.certificates else {}
        given: dict[str, Any] = {
            "decode_responses": True,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": COMMAND_SECONDS,
            "socket_connect_timeout": COMMAND_SECONDS,
        }
        return Redis(host=HOST, port=self.port, password=self.password, **given | tls | options)

    async def command(self, *words: str | bytes | int) -> Any:
        """Send one command on a new connection, and return the reply."""
        async with self.client() as client:
            untyped: Any = client
            return await untyped.execute_command(*words)

    async def info(self, section: str) -> dict[str, Any]:
        answer = await self.command("INFO", section)
        assert isinstance(answer, dict)
        return answer

    def write_config(self, lines: Sequence[str]) -> None:
        """Write redis.conf. Do so only once, because Sentinel and CONFIG REWRITE store state in the file."""
        self.directory.mkdir(exist_ok=True)
        basic = [f"bind {HOST}", f"dir {shlex.quote(str(self.directory))}", "daemonize no", 'logfile ""']
        basic += [f"port {0 if self.certificates else self.port}"]
        (self.directory / "redis.conf").write_text("".join(f"{line}\n" for line in (*basic, *lines)))

    async def start(self) -> None:
        """Start the process and wait until it answers. If it ends instead, the error contains its log."""
        assert not self.alive, f"{self.address} runs already"
        command = [server_binary(), str(self.directory / "redis.conf"), *self.arguments]
        with (self.directory / "redis.log").open("ab") as log:
            self._popen = subprocess.Popen(
                dying_with_parent(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        await eventually(self._ready, f"redis at {self.address}")

    async def _ready(self) -> bool:
        assert self.alive, f"redis at {self.address} ended:\n{self.log()}"
        return bool(await self.command("PING"))

    def log(self) -> str:
        """Return the end of its log."""
        return (self.directory / "redis.log").read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """Kill the process (SIGKILL), even if it is frozen. It may have ended already."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait(WAIT_SECONDS)

    def freeze(self) -> None:
        """Suspend the process (SIGSTOP): its connections stay open, but it answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """Send SIGTERM, resume the process if it is frozen, and wait until it ends."""
        if self._popen is not None:
            self._popen.terminate()
            self._popen.send_signal(signal.SIGCONT)
            await eventually(self._gone, f"the end of redis at {self.address}")

    async def _gone(self) -> bool:
        return not self.alive

    async def restart(self) -> None:
        """Stop it if it runs, and start it on the same port with the same data."""
        await self.stop()
        await self.start()

    async def config(self, *lines: str) -> None:
        """Apply lines of redis.conf, such as `maxmemory 2mb`, at once and after a restart."""
        for line in lines:
            await self.command("CONFIG", "SET", *shlex.split(line))
        with (self.directory / "redis.conf").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


def _credentials(password: str | None) -> str:
    return f":{password}@" if password else ""


@contextlib.contextmanager
def _directory() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="redis-test-", ignore_cleanup_errors=True) as directory:
        yield pathlib.Path(directory)


@contextlib.contextmanager
def _ending(processes: Sequence[Process]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def _data_lines(password: str | None, fsync: str) -> list[str]:
    lines = ["appendonly yes", f"appendfsync {fsync}", 'save ""', "maxmemory-policy noeviction"]
    return lines + ([f"requirepass {password}", f"masterauth {password}"] if password else [])


@contextlib.asynccontextmanager
async def standalone(
    *, password: str | None = None, unix_socket: bool = False, tls: bool = False, config: Sequence[str] = ()
) -> AsyncIterator[Process]:
    """Run and yield one server on TCP: optionally also on a unix socket, or with TLS instead of plain TCP."""
    if tls and not tls_supported():
        raise TlsUnsupportedError(server_binary())
    with _directory() as directory:
        server = Process(directory, password=password)
        lines = _data_lines(password, "always")
        if unix_socket:
            server.socket_path = str(directory / "redis.sock")
            lines += [f"unixsocket {server.socket_path}", "unixsocketperm 700"]
        if tls:
            server.certificates = made = make_certificates(directory)
            lines += [f"tls-port {server.port}", f"tls-cert-file {made.certificate}", f"tls-key-file {made.key}"]
            lines += [f"tls-ca-cert-file {made.ca}", "tls-auth-clients no"]
        server.write_config([*lines, *config])
        with _ending([server]):
            await server.start()
            yield server


@dataclass(frozen=True)
class TlsFront:
    """A rediss:// address; clients that trust `certificates.ca` reach the server behind it."""

    url: str
    port: int
    certificates: Certificates


@contextlib.asynccontextmanager
async def tls_front(server: Process) -> AsyncIterator[TlsFront]:
    """Terminate TLS in this process in front of a plain server, for binaries without TLS. Clients see no difference."""
    with _directory() as directory:
        certificates = make_certificates(directory)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates.certificate, certificates.key)
        relays = _Relays(server.port)
        listener = await asyncio.start_server(relays.serve, HOST, 0, ssl=context)
        port = listener.sockets[0].getsockname()[1]
        try:
            yield TlsFront(f"rediss://{_credentials(server.password)}{HOST}:{port}/0", port, certificates)
        finally:
            listener.close()
            await relays.close()
            await listener.wait_closed()


class _Relays:
    """The connections through a TLS front. They are ended by aborting their transports, never by cancelling tasks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = {writer}
        self._writers |= mine
        try:
            behind_reader, behind_writer = await asyncio.open_connection(HOST, self._port)
            mine.add(behind_writer)
            self._writers |= mine
            await asyncio.gather(_copy(reader, behind_writer), _copy(behind_reader, writer))
        except OSError:
            pass  # the server is down: the client sees its connection end
        finally:
            for each in mine:
                each.transport.abort()
            self._writers -= mine

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=WAIT_SECONDS)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy data until either connection ends, then abort the writer's."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@dataclass(frozen=True)
class SentinelSet:
    """A master, two replicas, and the three sentinels that watch them. The master may change."""

    nodes: list[Process]
    sentinels: list[Process]
    password: str | None = None

    @property
    def url(self) -> str:
        addresses = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{_credentials(self.password)}{addresses}/{SERVICE_NAME}"

    async def master(self) -> Process:
        """Return the node that a majority of the sentinels names as master and that itself reports this role."""
        return await eventually(self._agreed_master, "an agreed master")

    async def kill_master(self) -> Process:
        """Kill the master (SIGKILL). Return its process, for `new_master` and a later `start`."""
        master = await self.master()
        master.kill()
        return master

    async def new_master(self, after: Process) -> Process:
        """Wait until another node is master, and return it."""

        async def changed() -> Process | None:
            master = await self._agreed_master()
            return master if master is not after else None

        return await eventually(changed, "a new master")

    async def _agreed_master(self) -> Process | None:
        alive = [sentinel for sentinel in self.sentinels if sentinel.alive]
        asked = [s.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE_NAME) for s in alive]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        ports = [int(answer[1]) for answer in answers if isinstance(answer, list | tuple)]
        for node in self.nodes:
            if ports.count(node.port) * 2 > len(self.sentinels) and node.alive:
                return node if (await node.info("replication"))["role"] == "master" else None
        return None


@contextlib.asynccontextmanager
async def sentinel(*, password: str | None = None, config: Sequence[str] = ()) -> AsyncIterator[SentinelSet]:
    """Run and yield one master, two replicas and three sentinels with a quorum of two. Data nodes get `config`."""
    with _directory() as directory:
        nodes = [Process(directory / f"node{number}", password=password) for number in range(3)]
        sentinels = [Process(directory / f"sentinel{n}", arguments=("--sentinel",)) for n in range(3)]
        with _ending(nodes + sentinels):
            await _start_replicated(nodes, [*_data_lines(password, "everysec"), *config])
            await _start_sentinels(sentinels, nodes[0])
            made = SentinelSet(nodes, sentinels, password)
            for each in sentinels:
                await eventually(
                    functools.partial(_sees_all, each), f"a sentinel that knows all: {each.address}", TILT_SECONDS
                )
            await made.master()
            yield made


async def _start_replicated(nodes: Sequence[Process], lines: Sequence[str]) -> None:
    """Start the first node as master, the others as its replicas. Wait until these are online and report an offset."""
    quick = ["repl-diskless-sync-delay 0", "repl-ping-replica-period 1"]
    for node in nodes:
        follow = [] if node is nodes[0] else [f"replicaof {HOST} {nodes[0].port}"]
        node.write_config([*lines, *quick, *follow])
    await asyncio.gather(*(node.start() for node in nodes))

    async def all_online() -> bool:
        replicas = [(await nodes[0].info("replication")).get(f"slave{n}", {}) for n in range(len(nodes) - 1)]
        return all(replica.get("state") == "online" and replica.get("offset") for replica in replicas)

    await eventually(all_online, "replicas online")


async def _start_sentinels(sentinels: Sequence[Process], master: Process) -> None:
    watch = f"sentinel monitor {SERVICE_NAME} {HOST} {master.port} 2"
    # A sentinel reconnects once a second. With a shorter limit it would take a new master for dead.
    timing = {"down-after-milliseconds": 1500, "failover-timeout": 6000, "parallel-syncs": 2}
    lines = [watch, *(f"sentinel {name} {SERVICE_NAME} {value}" for name, value in timing.items())]
    if master.password:
        lines.append(f"sentinel auth-pass {SERVICE_NAME} {master.password}")
    for each in sentinels:
        each.write_config(lines)
    await asyncio.gather(*(each.start() for each in sentinels))
    for each in sentinels:
        await introduce_quickly(each)


async def introduce_quickly(sentinel: Process) -> None:
    """Let a sentinel find the others and the replicas sooner. Redis before version 7 has no command for that."""
    with contextlib.suppress(RedisError):
        await sentinel.command("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 200, "INFO-PERIOD", 500)


async def _sees_all(sentinel: Process) -> bool:
    master = _pairs(await sentinel.command("SENTINEL", "MASTER", SERVICE_NAME))
    replicas = [_pairs(each) for each in await sentinel.command("SENTINEL", "REPLICAS", SERVICE_NAME)]
    return (
        master["flags"] == "master"
        and master["num-other-sentinels"] == "2"
        and [(each["flags"], each["master-link-status"]) for each in replicas] == [("slave", "ok")] * 2
    )


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


@dataclass(frozen=True)
class Cluster:
    """Three masters and a replica of each. The master of a key may change."""

    nodes: list[Process]
    password: str | None = None

    @property
    def url(self) -> str:
        return f"redis+cluster://{_credentials(self.password)}{','.join(node.address for node in self.nodes)}"

    async def master_of(self, key: str | bytes) -> Process:
        """Return the master of the key's slot: of the nodes that claim the slot, the one with the highest epoch."""

        async def claimed() -> Process | None:
            return await self._claiming(key)

        return await eventually(claimed, f"a master of {key!r}")

    async def kill_master_of(self, key: str | bytes) -> Process:
        """Kill the key's master (SIGKILL). Return its process, for `new_master_of` and a later `start`."""
        master = await self.master_of(key)
        master.kill()
        return master

    async def new_master_of(self, key: str | bytes, after: Process) -> Process:
        """Wait until another node serves the key, and return it."""

        async def changed() -> Process | None:
            master = await self._claiming(key)
            return master if master is not after else None

        return await eventually(changed, f"a new master of {key!r}")

    async def _claiming(self, key: str | bytes) -> Process | None:
        slot = key_slot(key if isinstance(key, bytes) else key.encode())
        alive = [node for node in self.nodes if node.alive]
        tables = await asyncio.gather(*(_cluster_nodes(node) for node in alive), return_exceptions=True)
        claims = {}
        for node, table in zip(alive, tables, strict=True):
            for line in table if isinstance(table, list) else []:
                if "myself,master" in line[2] and any(_covers(word, slot) for word in line[8:]):
                    claims[int(line[6])] = node
        return claims[max(claims)] if claims else None


async def _cluster_nodes(node: Process) -> list[list[str]]:
    """Return the lines of CLUSTER NODES, each split into words. Fails if the client has parsed them already."""
    async with node.client() as client:
        untyped: Any = client
        text = await untyped.execute_command("CLUSTER", "NODES")
    assert isinstance(text, str), f"the client parsed CLUSTER NODES: {text!r}"
    return [line.split() for line in text.splitlines()]


def _covers(word: str, slot: int) -> bool:
    first, _, last = word.partition("-")
    return first.isdigit() and int(first) <= slot <= int(last or first)


@contextlib.asynccontextmanager
async def cluster(*, password: str | None = None, config: Sequence[str] = ()) -> AsyncIterator[Cluster]:
    """Run and yield three masters with one replica each. All slots are served, and every node knows all others."""
    with _directory() as directory:
        nodes = [Process(directory / f"node{number}", password=password) for number in range(6)]
        for node in nodes:
            node.write_config([*_data_lines(password, "everysec"), *_cluster_lines(), *config])
        with _ending(nodes):
            await asyncio.gather(*(node.start() for node in nodes))
            await _join(nodes)
            yield Cluster(nodes, password)


def _cluster_lines() -> list[str]:
    return [
        "cluster-enabled yes",
        f"cluster-announce-ip {HOST}",
        "cluster-node-timeout 1000",
        "cluster-require-full-coverage no",
        "cluster-allow-replica-migration no",
        "cluster-replica-validity-factor 0",
        "repl-diskless-sync-delay 0",
        "repl-ping-replica-period 1",
    ]


async def _join(nodes: Sequence[Process]) -> None:
    """Build the cluster as `redis-cli --cluster create` does: assign slots, introduce the nodes, then add replicas."""
    masters, replicas = nodes[:3], nodes[3:]
    for number, node in enumerate(nodes):
        await node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    bounds = [CLUSTER_SLOTS * number // len(masters) for number in range(len(masters) + 1)]
    for number, master in enumerate(masters):
        await master.command("CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))
    for one, other in ((a, b) for a in nodes for b in nodes if a.port < b.port):
        await one.command("CLUSTER", "MEET", HOST, other.port)
    for node in nodes:
        await eventually(functools.partial(_knows_all, node, len(nodes)), f"{node.address} knows all nodes")
    for master, replica in zip(masters, replicas, strict=True):
        await replica.command("CLUSTER", "REPLICATE", str(await master.command("CLUSTER", "MYID")))
    for node in nodes:
        await eventually(functools.partial(_serves, node), f"{node.address} sees a healthy cluster")
    for replica in replicas:
        await eventually(functools.partial(_linked, replica), f"{replica.address} follows its master")


async def _knows_all(node: Process, count: int) -> bool:
    lines = await _cluster_nodes(node)
    return len(lines) == count and not any("handshake" in line[2] or "noaddr" in line[2] for line in lines)


async def _serves(node: Process) -> bool:
    """Return whether the node sees a healthy cluster with three masters and three replicas."""
    state = str(await node.command("CLUSTER", "INFO")).splitlines()
    lines = await _cluster_nodes(node)
    roles = [line[2].removeprefix("myself,") for line in lines]
    return "cluster_state:ok" in state and sorted(roles) == ["master"] * 3 + ["slave"] * 3


async def _linked(replica: Process) -> bool:
    return (await replica.info("replication")).get("master_link_status") == "up"
