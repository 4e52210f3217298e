"""Where state and sockets go."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from ca.up.layout import SOCKET_PATH_LIMIT, Layout, passable, plan_layout


def sockets(layout: Layout) -> list[Path]:
    return [layout.server_admin_socket, layout.agent_admin_socket, layout.workload_socket]


def test_sockets_stay_at_home_when_they_fit() -> None:
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    assert plan_layout(home, shared=False).run == home / "run"


def test_a_deep_home_gets_a_short_directory_for_its_sockets(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 80) / ("y" * 80)
    layout = plan_layout(home, shared=True)
    assert layout.home == home
    assert layout.run.is_dir()
    assert layout.run.parent in (Path("/run"), Path("/tmp"))
    assert all(len(str(path)) <= SOCKET_PATH_LIMIT for path in sockets(layout))
    layout.run.rmdir()


def test_a_home_behind_a_closed_directory_is_left_when_others_must_reach_the_sockets() -> None:
    closed = Path(tempfile.mkdtemp(prefix="bg-"))  # 0700
    assert not passable(closed)
    assert plan_layout(closed / "home", shared=False).run == closed / "home" / "run"
    shared = plan_layout(closed / "home", shared=True)
    assert not shared.run.is_relative_to(closed)
    shared.run.rmdir()


@pytest.mark.parametrize("name", ["server_data", "agent_data", "agent_cache", "logs", "programs"])
def test_what_is_secret_is_closed_to_others(name: str) -> None:
    layout = plan_layout(Path(tempfile.mkdtemp(prefix="bg-")), shared=False)
    layout.create()
    assert getattr(layout, name).stat().st_mode & 0o777 == 0o700
    assert layout.run.stat().st_mode & 0o777 == 0o755
