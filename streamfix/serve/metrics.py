"""What Prometheus can read of a live server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from streamfix import __version__

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.stage = Histogram(
            "streamfix_stage_seconds", "Time of one run of a stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.latency = Histogram(
            "streamfix_latency_seconds", "From a frame's arrival to its delivery.", buckets=_SECONDS, registry=registry
        )
        self.frames = Counter("streamfix_frames", "Frames delivered.", registry=registry)
        self.drops = Counter("streamfix_drops", "Frames not delivered, by reason.", ["reason"], registry=registry)
        self.sessions = Gauge("streamfix_sessions", "Open sessions.", ["kind"], registry=registry)
        self.opened = Counter("streamfix_sessions_opened", "Sessions opened.", ["kind"], registry=registry)
        self.closed = Counter(
            "streamfix_sessions_closed", "Sessions closed, by reason.", ["kind", "reason"], registry=registry
        )
        self.refused = Counter(
            "streamfix_requests_refused", "Requests refused, by status.", ["status"], registry=registry
        )
        self.bitrate = Gauge("streamfix_send_bitrate_bps", "Target of all outgoing video together.", registry=registry)
        self.sent = Counter(
            "streamfix_sent_bytes", "Bytes of encoded media handed to viewers.", ["kind"], registry=registry
        )
        self.reconnects = Counter("streamfix_input_reconnects", "Times the input was opened again.", registry=registry)
        self.tasks = Gauge("streamfix_tasks", "Tasks in the event loop.", registry=registry)
        info = Gauge("streamfix_info", "Version.", ["version"], registry=registry)
        info.labels(__version__).set(1)

    def observe(self, stage: str, seconds: float) -> None:
        """One run of a stage."""
        self.stage.labels(stage).observe(seconds)

    def delivered(self, latency: float) -> None:
        """One frame delivered."""
        self.frames.inc()
        self.latency.observe(latency)

    def dropped(self, reason: str) -> None:
        """One frame not delivered."""
        self.drops.labels(reason).inc()

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)
