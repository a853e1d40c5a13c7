"""Servers for tests of remote sources and outputs, on 127.0.0.1: S3 in memory with faults, SeaweedFS, and SFTP."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import boto3
import fsspec
import pytest
import s3fs
from botocore.config import Config
from fsspec.registry import _registry

START_S = 60.0  # until a server must answer
LOGIN = {"AWS_ACCESS_KEY_ID": "writer", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_DEFAULT_REGION": "us-east-1"}
ATTEMPTS = {"AWS_MAX_ATTEMPTS": "3", "AWS_RETRY_MODE": "standard"}  # the library's default takes up to a minute
Fault = Callable[[str, str], int | None]  # method and path of a request -> the status of a refusal, or None


class S3:
    """A bucket `photos` on a server. environment: what lets a program use it."""

    def __init__(self, url: str) -> None:
        self.environment = {**LOGIN, **ATTEMPTS, "AWS_ENDPOINT_URL": url}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=LOGIN["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=LOGIN["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 3}),
        )

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="photos", Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket="photos", Key=key)["Body"].read()

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="photos")
        return [each["Key"] for page in pages for each in page.get("Contents", [])]


@contextmanager
def moto() -> Iterator[S3]:
    """S3 in the memory of this process. A fault is asked before each request."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs each request
    backend = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        s3.requests.append((method, path))
        for fault in s3.faults:
            if status := fault(method, path):
                return refusal(status, method, start_response)
        return backend(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    s3 = S3(f"http://127.0.0.1:{server.server_port}")
    s3.client.create_bucket(Bucket="photos")
    try:
        yield s3
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def refusal(status: int, method: str, start_response: Any) -> list[bytes]:
    code = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>the test says so</Message></Error>".encode()
    start_response(f"{status} Refused", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body] if method != "HEAD" else []


def first(times: int, status: int, wanted: str, of_method: str = "GET") -> Fault:
    """A fault of the first few requests whose path contains a text."""
    left = [times]

    def fault(method: str, path: str) -> int | None:
        if method != of_method or wanted not in path or not left[0]:
            return None
        left[0] -= 1
        return status

    return fault


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3]:
    """A real server, which keeps its data in a folder."""
    ports = free_ports(4)
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    weed = Path(sys.executable).with_name("weed")
    arguments = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-s3", "-volume.max=8"]
    arguments.append("-master.volumeSizeLimitMB=64")
    grpc = [f"-{name}.grpc={port}" for name, port in zip(names, free_ports(4), strict=True)]
    flags = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    log = (folder / "weed.log").open("wb")
    process = subprocess.Popen([weed, "server", *arguments, *flags, *grpc], stdout=log, stderr=log, cwd=folder)
    try:
        s3 = S3(f"http://127.0.0.1:{ports[3]}")
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                s3.client.create_bucket(Bucket="photos")
                s3.put("ready", b"1")
                s3.client.delete_object(Bucket="photos", Key="ready")
                break
            except Exception:
                said = (folder / "weed.log").read_text()[-2000:]
                assert process.poll() is None and time.monotonic() < deadline_s, said
                time.sleep(0.2)
        yield s3
    finally:
        process.kill()
        process.wait(10)
        log.close()


def hide(library: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a library of fsspec missing, even where an earlier test has used it."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(_registry, scheme, raising=False)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Sftp:
    """A server that shows a folder to a user `me` with the password `secret-word`.

    environment: what lets a program use it.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.port = 0
        self.environment = {"HOME": str(home)}
        self.connections: list[asyncssh.SSHServerConnection] = []

    def url(self, path: str = "", login: str = "me:secret-word@") -> str:
        return f"sftp://{login}127.0.0.1:{self.port}/{path}"

    def break_connections(self) -> None:
        for each in self.connections:
            self._loop.call_soon_threadsafe(each.abort)

    @contextmanager
    def running(self) -> Iterator["Sftp"]:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_S)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(server.close)
            self.break_connections()
            time.sleep(0.2)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(10)

    async def _listen(self) -> Any:
        key = asyncssh.generate_private_key("ssh-ed25519")
        outer = self

        class Server(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                outer.connections.append(conn)

            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, username: str, password: str) -> bool:
                return (username, password) == ("me", "secret-word")

        def files(channel: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
            return asyncssh.SFTPServer(channel, chroot=os.fsencode(self.folder))

        server = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Server, server_host_keys=[key], sftp_factory=files
        )
        self.port = server.sockets[0].getsockname()[1]
        (self.home / ".ssh").mkdir(parents=True, exist_ok=True)
        known = f"[127.0.0.1]:{self.port} {key.export_public_key().decode()}"
        (self.home / ".ssh" / "known_hosts").write_text(known)
        return server


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3]:
    with moto() as running:
        yield running


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An empty bucket `photos`; a page of a listing holds ten objects."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    call_s3 = s3fs.S3FileSystem.call_s3

    def short_pages(self: Any, method: str, **options: Any) -> Any:
        return call_s3(self, method, **options, **({"MaxKeys": 10} if method == "list_objects_v2" else {}))

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", short_pages)
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3_server
    s3_server.faults.clear()
    for key in s3_server.names():
        s3_server.client.delete_object(Bucket="photos", Key=key)


@pytest.fixture
def sftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sftp]:
    """A server of an empty folder, whose host key is known."""
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with Sftp(tmp_path / "served", tmp_path / "home").running() as running:
        yield running
    fsspec.get_filesystem_class("sftp").clear_instance_cache()


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)
