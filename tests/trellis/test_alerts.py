"""Who is told what: level against level, once, in groups, unless silenced."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.alerts import Alert, Channel, Silence, delivered, due, first_seen, hushed, refused

OPS, ALL = Channel("ops", "webhook"), Channel("all", "log", ("info", "warning", "critical"))
FAULT = Alert("m-1", "m", "critical", "open", "UPSTREAM_FAULT", "unit", "Celsius", "2013-07-01", "2013-07-08")
DRIFT = replace(FAULT, id="m-2", severity="warning", outcome="DRIFT", kind="gradual")


def closed(alert):
    return replace(alert, status="closed", closed_at="2013-07-15")


def test_one_message_for_alerts_of_one_model_worst_first_and_not_again():
    rows = first_seen([DRIFT, FAULT], [], [OPS])
    (message,) = due([DRIFT, FAULT], rows, [OPS], [], 0.0)
    assert [a.id for a in message.alerts] == ["m-1", "m-2"]
    told = delivered(message, 100.0)
    assert due([DRIFT, FAULT], told, [OPS], [], 101.0) == []
    assert due([DRIFT, FAULT], told, [OPS], [], 100.0 + 24 * 3_600)[0].alerts == message.alerts  # a reminder
    assert due([DRIFT, FAULT], told, [replace(OPS, repeat_hours=0)], [], 1e12) == []
    (over,) = due([closed(FAULT), DRIFT], told, [OPS], [], 200.0)
    assert (over.status, [a.id for a in over.alerts]) == ("closed", ["m-1"])
    (worse,) = due([FAULT, replace(DRIFT, severity="critical")], told, [OPS], [], 200.0)
    assert [a.id for a in worse.alerts] == ["m-2"]


def test_severity_and_model_route():
    quiet = Channel("quiet", "log", ("critical",), ("other",))
    rows = first_seen([FAULT, replace(DRIFT, severity="info")], [], [OPS, ALL, quiet])
    assert {(d.alert, d.channel) for d in rows} == {("m-1", "ops"), ("m-1", "all"), ("m-2", "all")}


def test_what_opens_and_closes_while_a_channel_is_down_is_still_told_and_old_news_is_not():
    rows = first_seen([FAULT], [], [OPS])
    (message,) = due([FAULT], rows, [OPS], [], 0.0)
    down = refused(message, "no route", 0.0)
    assert (due([FAULT], down, [OPS], [], 29.0), down[0].attempts) == ([], 1)
    (later,) = due([closed(FAULT)], down, [OPS], [], 31.0)
    assert later.status == "closed"
    waits = []
    for _ in range(12):
        down = refused(replace(message, deliveries=tuple(down)), "no route", 0.0)
        waits.append(down[0].next_at)
    assert waits == [min(3_600.0, 30.0 * 2**n) for n in range(1, 13)]
    assert first_seen([closed(DRIFT)], [], [OPS]) == []


def test_a_silence_holds_back_what_it_covers_until_it_ends():
    rows = first_seen([FAULT, DRIFT], [], [OPS])
    silence = Silence("s", "m", "unit", 1_000.0, "anna", "known")
    (message,) = due([FAULT, DRIFT], rows, [OPS], [silence], 0.0)
    assert [a.id for a in message.alerts] == ["m-2"]
    assert len(due([FAULT], rows, [OPS], [silence], 1_001.0)) == 1
    (gone,) = hushed([closed(FAULT), DRIFT], rows, [silence], 10.0)
    assert due([closed(FAULT)], [gone], [OPS], [], 2_000.0) == []
    assert not silence.covers(replace(FAULT, model="n"), 0.0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["open", "closed", "look"])), max_size=30))
def test_a_channel_that_comes_back_ends_up_knowing_how_things_stand(story):
    alert, rows, heard, now = FAULT, first_seen([FAULT], [], [OPS]), [], 0.0
    for up, event in [*story, (True, "look")]:
        now += 4_000.0
        alert = replace(alert, status=event if event != "look" else alert.status)
        for message in due([alert], rows, [OPS], [], now):
            rows = delivered(message, now) if up else refused(message, "down", now)
            heard += [message.status] if up else []
    assert heard[-1] == alert.status
    assert len(heard) <= 2 + len(story)
