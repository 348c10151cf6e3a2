"""Reports: no figure is lost, and what ends has been counted."""

import pytest

from support.engine import generate, null_engine
from tercet.server.engine import reports
from tercet.server.engine.reports import Reports


def run(monkeypatch, seconds):
    """What is sent of a generation of 9 tokens and an embedding of a text, and the number of steps."""
    monkeypatch.setattr(reports, "SECONDS", seconds)
    sent, steps = [], 0
    told = Reports(sent.append)
    engine, _ = null_engine()
    engine.submit(generate(1, range(5), 9))
    while engine.busy:
        result = engine.step()
        before = len(sent)
        told.add(result, last=not engine.busy)
        steps += 1
        if any(getattr(output, "finish_reason", None) for output in result.outputs):
            assert len(sent) == before + 1
    return sent, steps


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_every_step_is_counted_once(monkeypatch, seconds):
    sent, steps = run(monkeypatch, seconds)
    stats = [stats for report in sent for stats in report.stats]
    assert sum(one.generated_tokens for one in stats) == 9
    assert sum(one.prompt_tokens for one in stats) == 5
    assert all(report.answers == [] for report in sent)
    assert (len(sent) == steps) == (seconds == 0)
    assert (len(sent) < 4) == (seconds > 0)
    assert sent[-1].pages_used == 0
