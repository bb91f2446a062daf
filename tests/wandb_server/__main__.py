"""`python tests/wandb_server --port 0 --dir DIR`: prints its URL, then serves until SIGTERM."""

import argparse
import logging
import signal
import sys
from pathlib import Path

# This folder leads sys.path when it is run by name; the imports start at the repository.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.wandb_server.front import Server  # noqa: E402  # only found from here on


def main() -> None:
    parser = argparse.ArgumentParser(prog="wandb_server", description="A loopback W&B backend for tests.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--dir", type=Path, required=True, help="where everything it keeps lies")
    parser.add_argument("--capture", action="store_true", help="keep every request's bytes in DIR/capture.bin")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Server(given.dir, given.port, given.capture) as server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
