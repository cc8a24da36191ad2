"""Serves the demo agents: python -m agentproto.testing --port 8000"""

from __future__ import annotations

import argparse
from time import sleep

from . import RunsServer, demo_agents


def main(arguments: list[str] | None = None) -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m agentproto.testing",
        description="An in-memory server of the Runs API with agents to try a client on.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        with RunsServer(demo_agents, host=options.host, port=options.port) as server:
            _introduce(server.url)
            while True:
                sleep(60)
    except (OSError, OverflowError) as error:
        parser.exit(1, f"cannot listen at {options.host}:{options.port}: {error}\n")
    except KeyboardInterrupt:
        print("\nstopped", flush=True)  # noqa: T201  # what the command says


def _introduce(url: str) -> None:
    lines = [f"Runs API at {url}, agents:"]
    for name, agent in demo_agents.items():
        lines.append(f"  {name:<6} {(agent.__doc__ or '').strip()}")
    example = '{"agent_id": "chat", "stream_mode": "messages"}'
    lines += ["Try:", f"  curl -N {url}/runs/stream -d '{example}'", "Ctrl-C stops it."]
    print("\n".join(lines), flush=True)  # noqa: T201  # what the command says


if __name__ == "__main__":
    main()
