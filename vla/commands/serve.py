"""`vla serve`: serves a policy to robots over the network."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence

from vla.errors import InputError
from vla.policies.load import load_realtime, tasks_of_policy, weights_of_policy
from vla.policies.remote import api_key
from vla.serving.observation import Keys
from vla.serving.server import DRAIN, PolicyServer, check_host


def check_address(host: str, port: int, key_file: str | None, max_clients: int, max_mb: int) -> str:
    """The API key that clients send. Raises InputError for invalid options, and if the address requires a key."""
    if not 0 <= port < 65536 or max_clients < 1 or max_mb < 1:
        raise InputError(
            f"port={port} max_clients={max_clients} max_mb={max_mb}: a port is below 65536, the others are 1 or more"
        )
    key = api_key(key_file)
    check_host(host, key)
    return key


def serve(
    *,
    policy: str,
    embodiment: str | None,
    host: str,
    port: int,
    key_file: str | None,
    cameras: Mapping[str, str] | None,
    state: Sequence[str],
    prompt: str,
    max_clients: int,
    max_mb: int,
    instruction: str | None = None,
) -> None:
    """Serves a policy until SIGTERM or SIGINT.

    Args:
        policy: The checkpoint.
        embodiment: Name of the robot; None if the checkpoint has only one.
        host: Address to listen at.
        port: Port; 0: any free port.
        key_file: File with the API key; None: the environment variable VLA_API_KEY.
        cameras: Key of each camera's image in a message.
        state: Keys whose concatenated values are the state; none: "state".
        prompt: Key of the instruction.
        max_clients: Number of simultaneous clients.
        max_mb: Size of the largest message [MiB].
        instruction: Instruction for clients that send none.

    Raises:
        InputError: Options are invalid, or the address is in use.
    """
    key = check_address(host, port, key_file, max_clients, max_mb)
    loaded = load_realtime(policy, embodiment or "")
    spec = loaded.model.processor.robot(embodiment or "")
    keys = Keys.of(loaded.embodiment, cameras or {}, state, prompt, instruction or None)

    async def run() -> bool:
        server = PolicyServer(
            loaded,
            keys,
            statistics_hash=spec.statistics_hash,
            tasks=tasks_of_policy(policy),
            weights=weights_of_policy(policy),
            key=key,
            max_clients=max_clients,
            max_bytes=max_mb * 2**20,
        )
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with server.listen(host, port) as bound:
            print(f"serving {policy} for {spec.name} at ws://{host}:{bound}", flush=True)
            await stop.wait()
            print("answering pending requests", flush=True)
        return server.stuck

    try:
        stuck = asyncio.run(run())
    except OSError as error:
        raise InputError(f"cannot listen at host={host} port={port}: {error.strerror or error}") from error
    if stuck:  # a thread that never returns would prevent the process from ending
        print(f"the policy did not answer within {DRAIN:g} s: stopped without its answer", flush=True)
        os._exit(1)
