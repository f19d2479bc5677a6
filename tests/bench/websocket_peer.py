"""The usual alternative: settings over HTTP, pushed to the training process over a WebSocket.

FastAPI under uvicorn, with uvloop and httptools; what is asked for and what came of it are each
committed with fsync before they are answered, as ours are. In the training process a thread
reads the WebSocket and the loop looks at a queue after each step. Run as a module it is either:

    python -m tests.bench.websocket_peer serve DATABASE     prints its port
    python -m tests.bench.websocket_peer train DIRECTORY ADDRESS
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import queue
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

NEEDED = ("fastapi", "uvicorn", "websockets")


def missing() -> list[str]:
    """What of it is not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def serve(path: str) -> None:
    import asyncio

    import uvicorn
    from fastapi import FastAPI, WebSocket

    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute(
        "CREATE TABLE settings (number INTEGER PRIMARY KEY, rate REAL, applied INTEGER)"
    )
    pushed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    settled: dict[int, asyncio.Future[int]] = {}
    app = FastAPI()

    async def put(body: dict[str, float]) -> dict[str, int]:
        cursor = database.execute("INSERT INTO settings (rate) VALUES (?)", (body["rate"],))
        assert cursor.lastrowid is not None
        settled[cursor.lastrowid] = asyncio.get_running_loop().create_future()
        pushed.put_nowait({"number": cursor.lastrowid, "rate": body["rate"]})
        return {"number": cursor.lastrowid}

    async def wait(number: int) -> dict[str, int]:
        applied = await settled[number]
        del settled[number]
        return {"applied": applied}

    async def session(socket: Any) -> None:
        await socket.accept()

        async def send() -> None:
            while True:
                await socket.send_json(await pushed.get())

        sending = asyncio.create_task(send())
        try:
            async for answer in socket.iter_json():
                database.execute(
                    "UPDATE settings SET applied = ? WHERE number = ?",
                    (answer["applied"], answer["number"]),
                )
                settled[answer["number"]].set_result(answer["applied"])
        finally:
            sending.cancel()

    # Annotations are read where the routes are made, and these are imported in here only.
    session.__annotations__["socket"] = WebSocket
    app.post("/settings")(put)
    app.get("/settings/{number}")(wait)
    app.websocket("/session")(session)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", loop="uvloop")
    bound = config.bind_socket()
    bound.listen()  # so that who reads the port can connect
    print(bound.getsockname()[1], flush=True)
    uvicorn.Server(config).run([bound])


def train(directory: Path, address: str) -> None:
    import torch
    from transformers import TrainerCallback
    from websockets.sync.client import connect

    from tests.bench.light_trainer import StopFile, light_trainer

    class Listener(TrainerCallback):
        """Applies what the thread has read, and says so."""

        def __init__(self) -> None:
            self._socket = connect(f"ws://{address}/session", compression=None)
            self._arrived: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
            threading.Thread(target=self._listen, daemon=True).start()

        def _listen(self) -> None:
            for message in self._socket:
                self._arrived.put(json.loads(message))

        def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            while not self._arrived.empty():
                change = self._arrived.get()
                for group in parts["optimizer"].param_groups:
                    group["lr"] = group["initial_lr"] = change["rate"]
                scheduler = parts["lr_scheduler"]  # accelerate may have wrapped it
                rates = getattr(scheduler, "scheduler", scheduler).base_lrs
                rates[:] = [change["rate"]] * len(rates)
                applied = {"number": change["number"], "applied": time.time_ns()}
                self._socket.send(json.dumps(applied))

    torch.set_num_threads(1)
    trainer = light_trainer(directory, 10_000_000, [StopFile(directory / "stop"), Listener()])
    trainer.train()


class Caller:
    """Asks for settings, one after the other, over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)

    def update(self, rate: float) -> float:
        """Milliseconds from the call to the boundary that applied it."""
        called = time.time_ns()
        number = self._ask("POST", "/settings", {"rate": rate})["number"]
        applied = self._ask("GET", f"/settings/{number}")["applied"]
        return (applied - called) / 1e6

    def measure(self, count: int) -> list[float]:
        """The same for many, after the first few."""
        warm = max(10, count // 10)
        return [self.update(1e-3 if each % 2 else 2e-3) for each in range(count + warm)][warm:]

    def _ask(self, method: str, path: str, body: dict[str, float] | None = None) -> dict[str, int]:
        given = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, given, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status}: {text!r}")
        answer: dict[str, int] = json.loads(text)
        return answer


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        train(Path(sys.argv[2]), sys.argv[3])
