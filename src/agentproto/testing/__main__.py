"""`python -m agentproto.testing`: serve the demo agents until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress

from . import RunsServer, demo_agents


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m agentproto.testing", description="Serve demo agents over the Runs API."
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one; default: 8000")
    options = parser.parse_args()
    try:
        with suppress(KeyboardInterrupt), _server(options.host, options.port) as server:
            sys.stdout.write(_greeting(server.url))
            sys.stdout.flush()
            while True:
                time.sleep(3600)
    except (OSError, OverflowError) as error:
        parser.exit(1, f"cannot listen on {options.host}:{options.port}: {error}\n")


def _server(host: str, port: int) -> RunsServer:
    return RunsServer(demo_agents, host=host, port=port)


def _greeting(url: str) -> str:
    agents = "".join(f"  {name:<6}{agent.__doc__}\n" for name, agent in demo_agents.items())
    return f"""\
Serving the Runs API on {url} (Ctrl-C ends it)

{agents}
curl -N {url}/runs/stream -H 'content-type: application/json' \\
  -d '{{"agent_id": "slow", "input": {{"n": 5, "interval": 0.5}}, "stream_mode": "custom"}}'
"""


if __name__ == "__main__":
    main()
