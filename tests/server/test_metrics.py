"""What Prometheus is told."""

from __future__ import annotations

from server.metrics import Metrics
from stream.stats import Figures
from tests.server.conftest import LiveServer
from tests.server.duplex import duplex
from tests.server.rtc import Camera, until


def test_servers_in_one_process_do_not_share_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.sessions_created.inc()
    assert b"retalk_sessions_created_total 1.0" in one.exposition()
    assert b"retalk_sessions_created_total 0.0" in two.exposition()


def test_figures_land_in_explicit_buckets() -> None:
    metrics = Metrics()
    metrics.observe(Figures([75.0], [-12.0], {"patch": [3.0, 7.0]}))
    metrics.observe(Figures())
    text = metrics.exposition().decode()
    assert 'retalk_added_latency_ms_bucket{le="60.0"} 0.0' in text
    assert 'retalk_added_latency_ms_bucket{le="80.0"} 1.0' in text
    assert 'retalk_skew_ms_bucket{le="-10.0"} 1.0' in text
    assert 'retalk_stage_ms_bucket{le="5.0",stage="patch"} 1.0' in text
    assert "retalk_added_latency_ms_count 1.0" in text
    assert 'retalk_stage_ms_count{stage="patch"} 2.0' in text


def test_drops_and_steps_are_counted_by_cause() -> None:
    metrics = Metrics()
    metrics.count({}, {"inlet_full": 2, "source_full": 0}, metrics.dropped_frames)
    metrics.count({"inlet_full": 2}, {"inlet_full": 5}, metrics.dropped_frames)
    metrics.count({}, {"half_rate": 1}, metrics.rung_changes)
    text = metrics.exposition().decode()
    assert 'retalk_dropped_frames_total{cause="inlet_full"} 5.0' in text
    assert 'retalk_dropped_frames_total{cause="source_full"} 0.0' in text
    assert 'retalk_rung_changes_total{to="half_rate"} 1.0' in text


async def test_a_session_is_counted_and_never_named(server: LiveServer) -> None:
    session = await server.create()
    async with duplex(session, Camera()) as (_, watcher, _socket):
        await until(lambda: len(watcher.video) > 40)
        text = (await server.http.get("/metrics")).text
        assert "retalk_sessions 1.0" in text
        assert 'retalk_peers_opened_total{role="duplex"} 1.0' in text
        assert 'stage="encode"' in text
        frames = next(line for line in text.splitlines() if line.startswith("retalk_added_latency_ms_count"))
        assert float(frames.split()[1]) >= 15, "not every frame is in the histogram"
        about = await session.about()
        assert about["drops"]["inlet_full"] == 0
        assert about["rung_changes"] == {}
        assert session.id not in text
        assert session.token not in text
    await server.http.delete(session.urls["session"], headers=session.bearer)
    text = (await server.http.get("/metrics")).text
    assert 'retalk_sessions_ended_total{reason="deleted"} 1.0' in text
    assert "retalk_sessions 0.0" in text


def test_what_engines_count_is_added_up() -> None:
    metrics = Metrics()
    metrics.count({}, {"reference_hits": 5, "reference_misses": 1})
    metrics.count({"reference_hits": 5, "reference_misses": 1}, {"reference_hits": 9, "reference_misses": 1})
    text = metrics.exposition().decode()
    assert 'retalk_engine_counts_total{what="reference_hits"} 9.0' in text
    assert 'retalk_engine_counts_total{what="reference_misses"} 1.0' in text
