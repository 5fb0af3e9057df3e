"""A `python` that need not import: it asks a process that has imported everything to fork, and waits for that fork.

DVC's stages are commands in a shell, and each would import torch for seconds. `serve` runs in the folder whose modules
are to be used; `shim` writes the `python` that DVC finds first on its path. What is asked for in another way than
`python -m pipeline.…` is run by a Python of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHIM = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:2] != ["-m"] or not sys.argv[2].startswith("pipeline."):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("{address}")
    asked = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(connection, [len(asked).to_bytes(4, "big") + asked], [0, 1, 2])
    sys.exit(int(connection.recv(16)))
"""


@contextmanager
def warm_python(folder: Path, place: Path, commands: list[str]) -> Iterator[Path]:
    """Give a folder with a `python` that runs the commands of the program in `folder`; place: an empty folder."""
    address = place / "socket"
    shim = place / "bin" / "python"
    shim.parent.mkdir(parents=True)
    shim.write_text(SHIM.format(python=sys.executable, address=address), encoding="utf-8")
    shim.chmod(0o755)
    command = [sys.executable, __file__, str(address), *commands]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout and server.stdout.readline(), "it is ready"
        yield shim.parent
        server.kill()


def serve(address: str, commands: list[str]) -> None:
    """Import the commands, and fork for each connection."""
    for command in commands:
        importlib.import_module(f"pipeline.{command}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                answer(connection)
            connection.close()
            reap()


def reap() -> None:
    """Forget forks that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def answer(connection: socket.socket) -> None:
    """Run what is asked for as `python -m` would, and tell its exit code."""
    asked, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while len(asked) < 4 + int.from_bytes(asked[:4], "big"):
        asked += connection.recv(1 << 20)
    (module, *arguments), folder, environment = json.loads(asked[4:])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - of what was sent
    code = 1
    try:
        command_line = importlib.import_module("pipeline.command_line")
        code = command_line.run_command(module.removeprefix("pipeline."), arguments)
    except SystemExit as end:  # of --help
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(code).encode())
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
