"""Figures for Prometheus, by the names that vLLM gives them where they mean the same."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from esolm.pipeline.export.bundle.writing_esolm import Writing
from esolm.pipeline.serve.engine import DecodingEngine, Finished, Ticket

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Now(Collector):
    """What holds at the moment of asking."""

    def __init__(self, engine: DecodingEngine, model: str) -> None:
        self._engine, self._model = engine, model

    def collect(self) -> list[GaugeMetricFamily]:
        """Called by the registry."""
        figures = {
            "vllm:num_requests_running": ("Texts being written", self._engine.num_running),
            "vllm:num_requests_waiting": ("Texts waiting for a row", self._engine.num_waiting),
            "vllm:kv_cache_usage_perc": (
                "Share of the rows in use", self._engine.num_running / self._engine.rows,
            ),
            "esolm:forward_passes": ("Forward passes so far", self._engine.passes),
        }  # fmt: skip
        found = []
        for name, (text, value) in figures.items():
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model], value)
            found.append(family)
        return found


class Metrics:
    """Counts what begins and ends."""

    def __init__(self, engine: DecodingEngine, model: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Now(engine, model))
        labels, registry = ["model_name"], self.registry
        self._prompt = Counter("vllm:prompt_tokens", "Tokens given", labels, registry=registry)
        self._new = Counter("vllm:generation_tokens", "Tokens written", labels, registry=registry)
        self._success = Counter(
            "vllm:request_success", "Texts finished", [*labels, "finished_reason"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "vllm:e2e_request_latency_seconds", "Seconds of a request", labels, buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self._model = model

    def begun(self, writings: list[Writing]) -> None:
        """A request has come in."""
        self._prompt.labels(self._model).inc(sum(len(each.given_places) for each in writings))

    def ended(self, tickets: list[Ticket], finished: list[Finished]) -> None:
        """A request is over, with these of its texts whole."""
        self._seconds.labels(self._model).observe(time.monotonic() - tickets[0].entered)
        self._new.labels(self._model).inc(
            sum(len(places) for ticket in tickets for places in ticket.writing.history)
        )
        for each in finished:
            self._success.labels(self._model, each.reason).inc()

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
