"""What Prometheus reads: counters, gauges and histograms of this server, in a registry of its own.

No metric carries a session's id: label values must stay few, and ids are secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stream.stats import Figures

LATENCY_BUCKETS_MS = (20, 40, 60, 80, 100, 120, 150, 200, 250, 300, 400, 500, 700, 1000, 2000)
STAGE_BUCKETS_MS = (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400, 1000)
SKEW_BUCKETS_MS = (-120, -80, -60, -40, -20, -10, 0, 10, 20, 40, 60, 80, 120)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry, prefix = self.registry, "retalk"
        self.sessions_created = Counter(
            "sessions_created", "Sessions admitted", namespace=prefix, registry=registry
        )
        self.sessions_ended = Counter(
            "sessions_ended", "Sessions ended", ["reason"], namespace=prefix, registry=registry
        )
        self.refused = Counter("refused", "Requests refused", ["code"], namespace=prefix, registry=registry)
        self.peers_opened = Counter(
            "peers_opened", "Peer connections begun", ["role"], namespace=prefix, registry=registry
        )
        self.peers_ended = Counter(
            "peers_ended", "Peer connections ended", ["role", "reason"], namespace=prefix, registry=registry
        )
        self.added_latency = Histogram(
            "added_latency_ms",
            "Arrival of a source frame to its release, every frame",
            buckets=LATENCY_BUCKETS_MS,
            namespace=prefix,
            registry=registry,
        )
        self.skew = Histogram(
            "skew_ms",
            "Audio time minus video time at release, every frame",
            buckets=SKEW_BUCKETS_MS,
            namespace=prefix,
            registry=registry,
        )
        self.stage = Histogram(
            "stage_ms",
            "Wall time of a window by stage, every window",
            ["stage"],
            buckets=STAGE_BUCKETS_MS,
            namespace=prefix,
            registry=registry,
        )
        self.late_frames = Counter(
            "late_frames", "Frames replaced by their source frame", namespace=prefix, registry=registry
        )
        self.dropped_frames = Counter(
            "dropped_frames",
            "Frames that never came out, by where they were lost",
            ["cause"],
            namespace=prefix,
            registry=registry,
        )
        self.rung_changes = Counter(
            "rung_changes", "Steps of the quality ladder", ["to"], namespace=prefix, registry=registry
        )

        self.engine_counts = Counter(
            "engine_counts",
            "What engines count, such as reference_hits and reference_misses of the pose cache",
            ["what"],
            namespace=prefix,
            registry=registry,
        )

    def count(
        self, before: Mapping[str, int], now: Mapping[str, int], counter: Counter | None = None
    ) -> None:
        """One session's counts as they were and as they are: its engine's, or those of a labelled counter."""
        counter = counter or self.engine_counts
        for what, total in now.items():
            counter.labels(what).inc(max(0, total - before.get(what, 0)))

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is scraped."""
        Gauge(name, help_text, namespace="retalk", registry=self.registry).set_function(read)

    def observe(self, figures: Figures) -> None:
        """All values of one session since the last time."""
        for milliseconds in figures.added_latency_ms:
            self.added_latency.observe(milliseconds)
        for milliseconds in figures.skew_ms:
            self.skew.observe(milliseconds)
        for stage, values in figures.stage_ms.items():
            histogram = self.stage.labels(stage)
            for milliseconds in values:
                histogram.observe(milliseconds)

    def exposition(self) -> bytes:
        """The text that GET /metrics answers."""
        return generate_latest(self.registry)
