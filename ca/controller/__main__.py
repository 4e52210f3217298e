"""The controller's composition root: `python -m ca.controller --config FILE [--check | --dry-run]`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ca.controller.config import ControllerConfig
from ca.controller.controller import Controller
from ca.controller.dry_run import dry_run
from ca.errors import BurgeeError, ConfigError
from ca.runtime import collector, log, memory, notify
from ca.runtime.config import load_yaml
from ca.runtime.reload import reload

LIVE = frozenset({"log", "deletion_guard"})
logger = log.get("controller")


def check(config: ControllerConfig) -> None:
    """What can be known to be wrong without touching anything: the models have said it all."""


async def run(config: ControllerConfig, path: Path | None = None) -> None:
    """Works until SIGTERM or SIGINT; SIGHUP reads `path` again."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # what was read just now need not be read again
    controller = Controller(config)
    try:
        await controller.start()
        logger.info("started", cluster=config.cluster, entries=config.mark, metrics_address=controller.metrics_address)
        if path is not None:
            file = path
            loop.add_signal_handler(
                signal.SIGHUP,
                lambda: reload(file, controller.config, live=LIVE, check=check, apply=controller.reconfigure),
            )
        collector.start_is_over()
        notify.ready()
        await stop.wait()
        logger.info("stopping")
        notify.stopping()
    finally:
        await controller.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 stopped, 1 failed, 2 the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="burgee controller", description="Entries from Kubernetes.")
    parser.add_argument("--config", type=Path, required=True, help="configuration file (YAML)")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done to the entries, and exit")
    options = parser.parse_args(arguments)
    try:
        config = load_yaml(options.config, ControllerConfig)
        log.configure(config.log.format, "error" if options.dry_run else config.log.level)
        if options.check:
            check(config)
            print(f"{options.config}: the configuration is valid")
            return 0
        if options.dry_run:
            return asyncio.run(dry_run(config))
        memory.keep_private()
        asyncio.run(run(config, options.config))
    except BurgeeError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        print(f"error: {error.detail} ({error.reason}){hint}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
