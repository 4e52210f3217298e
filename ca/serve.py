"""The server as a program: `python -m ca.serve --config FILE [--check]`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from ca.errors import BurgeeError, ConfigError
from ca.runtime import collector, log, memory, notify
from ca.runtime.clock import SystemClock
from ca.runtime.config import load_yaml
from ca.runtime.reload import reload
from ca.runtime.server_config import ServerConfig
from ca.server import Server
from ca.service.configured import LIVE, check, foresee

logger = log.get("server")


async def run(config: ServerConfig, path: Path | None = None) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP reads `path` again."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # what was read just now need not be read again
    server = Server(config)
    await server.start()
    logger.info(
        "ready" if server.sign_on.done else "up, and not ready",
        trust_domain=config.trust_domain,
        address=f"{server.address[0]}:{server.address[1]}",
        admin_socket=str(config.admin_socket_path),
        metrics_address=server.metrics_address,
    )
    if path is not None:
        file = path
        loop.add_signal_handler(
            signal.SIGHUP, lambda: reload(file, server.config, live=LIVE, check=check, apply=server.reconfigure)
        )
    collector.start_is_over()
    notify.ready()
    await stop.wait()
    logger.info("stopping", grace_seconds=server.config.stop_grace_seconds)
    notify.stopping()
    await server.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 stopped, 1 failed, 2 the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="burgee server", description="The Burgee server.")
    parser.add_argument("--config", type=Path, required=True, help="configuration file (YAML)")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    options = parser.parse_args(arguments)
    try:
        config = load_yaml(options.config, ServerConfig)
        log.configure(config.log.format, config.log.level)
        if options.check:
            check(config)
            foresee(config, SystemClock().now())
            print(f"{options.config}: the configuration is valid")
            return 0
        memory.keep_private()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # a fifth less CPU for each call
            runner.run(run(config, options.config))
    except BurgeeError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        words = getattr(error.__cause__, "orig", None)  # the database's
        cause = f"\n  cause: {words}" if words else ""
        print(f"error: {error.detail} ({error.reason}){cause}{hint}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
