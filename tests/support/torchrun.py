"""Starts the processes of a distributed run on this machine, over gloo."""

from __future__ import annotations

from pathlib import Path

from tests.support.processes import ROOT, Process, free_port


def torchrun(
    name: str, ranks: int, directory: Path, *arguments: str, seconds: float = 100.0, **env: str
) -> Process:
    """Run a script of this project under torchrun and wait until it has ended well.

    Args:
        name: Of the log file.
        ranks: How many processes.
        directory: For the log.
        arguments: The script, from the root of the project, and its arguments.
        seconds: The longest that it may take.
        env: More environment variables.
    """
    process = Process(
        name,
        [
            *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
            *(str(ROOT / arguments[0]), *arguments[1:]),
        ],
        directory,
        **env,
    )
    try:
        code = process.wait(seconds)
        assert code == 0, f"{name} ended with {code}:\n{process.tail(20_000)}"
    finally:
        process.end()
    return process


def ranks_alone(
    name: str, ranks: int, directory: Path, *arguments: str, **env: str
) -> list[Process]:
    """Start the ranks of a script without torchrun, which ends all where one has ended.

    Args:
        name: Of the log files, with the number of the rank.
        ranks: How many processes.
        directory: For the logs.
        arguments: The script, from the root of the project, and its arguments.
        env: More environment variables.
    """
    port = str(free_port())
    return [
        Process(
            f"{name}-{rank}",
            [str(ROOT / arguments[0]), *arguments[1:]],
            directory,
            **{
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                **env,
            },
        )
        for rank in range(ranks)
    ]
