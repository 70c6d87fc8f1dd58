"""A single row is found as its column would be: same values, marks, counts and refusals, on stores drawn at random."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.prediction.columns import to_json
from services.prediction.errors import StaleFeaturesError
from services.prediction.features import find
from services.prediction.metrics import Metrics
from services.prediction.one_row import OneRow, OneRows
from tests.services.conftest import Shops
from trellis.adapters.row_reader import StoredRow
from trellis.contract import Field, Metric, ModelSpec, Target
from trellis.errors import RequestError
from trellis.freshness import Sla

VIEWS = {"day": ("sales", "visits"), "week": ("kind", "total"), "spare": ("unused",)}
DTYPES = {"sales": "f4", "visits": "f8", "kind": "O", "total": "f4", "unused": "f4", "angle": "f4"}
SPEC = ModelSpec(
    name="shops",
    version="1.0",
    task="binary",
    owner="tests",
    description="A shop's day.",
    request=(Field("shop", "text", "Which.", max_length=9, example="a"), Field("at", "timestamp", "When.")),
    features=tuple(
        Field(name, "category" if name == "kind" else "float", "One.", nullable=True, example=None)
        for name in ("sales", "visits", "kind", "total", "angle")
    ),
    entity_keys=("shop",),
    feature_service="shops_v1",
    inputs=("sales", "visits", "kind", "total", "angle"),
    outputs=(Field("probability", "float", "P(good).", minimum=0, maximum=1, example=0.5),),
    target=Target("good", "Whether it was.", classes=("bad", "good")),
    metric=Metric("auc", floor=0.5),
)
AT = datetime(2026, 1, 2, 12, tzinfo=UTC)
MICROS = int(AT.timestamp() * 1e6)


class Store:
    """One row's features, as the columns' verbs give them and as the row reader's do."""

    is_for_loops = False
    needs = ("shop", "at")

    def __init__(self, cells, times, old, slas):
        self.cells, self.times, self.old, self.promises = cells, times, old, slas
        self.dtypes = {name: np.dtype(kind) for name, kind in DTYPES.items()}
        self.slas = slas

    def online(self, service, keys, request):
        columns = {name: np.array((value,), self.dtypes[name]) for name, value in self.cells.items()}
        times = {v: np.array(["NaT" if t is None else np.datetime64(t, "us")], "M8[us]") for v, t in self.times.items()}
        return columns, times

    def stale(self, service, times, request):
        return {view: np.array([True]) for view in self.old}

    def derived(self, service, request):
        return {}

    def read(self, row):
        return StoredRow(dict(self.cells), dict(self.times), self.old)

    async def fetch(self, row):
        return self.read(row)


class Columns(Store):
    """The store of ``find``, whose ``slas`` is a verb."""

    def slas(self, service):
        return self.promises

    def __init__(self, *parts):
        super().__init__(*parts)
        del self.__dict__["slas"]


numbers = st.one_of(st.just(np.nan), st.floats(-9, 9, width=32))
values = {name: st.sampled_from([None, "", "small"]) if kind == "O" else numbers for name, kind in DTYPES.items()}
ages = st.one_of(st.none(), st.integers(-3, 3).map(lambda hours: MICROS - hours * 3_600_000_000))
actions = st.sampled_from(["serve", "impute", "reject", "fall_back"])


@st.composite
def worlds(draw):
    times = {view: draw(ages) for view in VIEWS}
    old = tuple(view for view in VIEWS if times[view] is not None and draw(st.booleans()))
    cells = {name: draw(strategy) for name, strategy in values.items()}
    for view, names in VIEWS.items():
        if times[view] is None or view in old:
            cells.update({name: None if DTYPES[name] == "O" else np.nan for name in names})
    slas = tuple(Sla(v, names, timedelta(hours=1), draw(actions)) for v, names in VIEWS.items() if draw(st.booleans()))
    needed = draw(st.sets(st.sampled_from(sorted(set(DTYPES) - {"unused"}))))
    features = tuple(replace(f, nullable=f.name not in needed) for f in SPEC.features)
    default = draw(st.sampled_from([None, {"probability": 0.5}]))
    time_field = draw(st.sampled_from(["at", "at", None]))
    return replace(SPEC, features=features, default=default, time_field=time_field), (cells, times, old, slas)


def outcome(way):
    """Return what came of it, in plain values, and what was counted."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    try:
        found = way(metrics)
    except (RequestError, StaleFeaturesError) as error:
        told = (type(error), str(error))
    else:
        if found.single is None:
            cells = {name: column.tolist()[0] for name, column in found.columns.items()}
            moments = {view: to_json(column[0]) for view, column in found.times.items()}
        else:
            cells, moments = found.single
        told = (
            {name: (column.dtype, column.shape, repr(column.tolist())) for name, column in found.columns.items()},
            {name: repr(value) for name, value in cells.items()},
            dict(moments),
            found.overrides,
            found.degraded,
            {row: dict(views) for row, views in found.stale.items()},
            dict(found.fallback),
        )
    metrics.flush()
    samples = {(s.name, *sorted(s.labels.items())): s.value for m in registry.collect() for s in m.samples}
    return told, {name: value for name, value in samples.items() if "created" not in name[0] and value}


@given(worlds())
def test_a_row_is_found_as_its_column_is(world):
    spec, parts = world
    row = {"shop": "a", "at": AT}
    one = OneRow.of(spec, Store(*parts))
    single = outcome(lambda metrics: one.found(row, one.reader.read(one.asks(row)), metrics))
    whole = outcome(lambda metrics: find(spec, Columns(*parts), [row], [{"shop", "at"}], metrics))
    assert single == whole


def test_what_a_reader_is_asked_for_is_what_a_column_would_hold():
    spec = replace(SPEC, request=(SPEC.request[0], replace(SPEC.request[1], nullable=True)))
    one = OneRow.of(spec, Store({}, {}, (), ()))
    east = AT.astimezone(tz=None)
    assert one.asks({"shop": "a", "at": east}) == {"shop": "a", "at": AT.replace(tzinfo=None)}
    assert one.asks({"shop": None}) == {"shop": "", "at": None}


def test_what_only_columns_can_do_is_left_to_them():
    store = Store({}, {}, (), ())
    assert OneRow.of(SPEC, None) is None
    assert OneRow.of(replace(SPEC, entity_keys=()), store) is not None, "the shop is in the request all the same"
    store.needs = ("shop", "elsewhere")
    assert OneRow.of(SPEC, store) is None
    store = Store({}, {}, (), ())
    del store.dtypes["angle"]
    assert OneRow.of(SPEC, store) is None


class Reader:
    """Reads the toy's shops on the event loop; can be made to take its time."""

    is_for_loops = True
    needs = ("shop",)
    slas = ()

    def __init__(self, shops):
        self.shops = shops
        self.fetched = 0
        self.gate = None
        self.dtypes = {"rate": np.dtype("f8"), "size": np.dtype("f8")}

    async def fetch(self, row):
        self.fetched += 1
        if self.gate is not None:
            await self.gate.wait()
        return self.read(row)

    def read(self, row):
        if self.shops.down:
            raise ConnectionError("the store is away")
        rate, size = self.shops.rows.get(row["shop"], (np.nan, np.nan))
        at = MICROS if row["shop"] in self.shops.rows else None
        return StoredRow({"rate": rate, "size": size}, {"shop_view": at}, ())


def asked(world, row, **headers):
    return world.send("POST", "/v1/models/toy_linear/predict", json={"rows": [row]}, headers=headers)


class OnLoops(Shops):
    """The toy's shops, with a reader of rows."""

    def row_reader(self, service):
        return self.reader


@pytest.fixture
def loops(world):
    world.limits.flush_seconds = 0.01
    world.shops = OnLoops()
    world.shops.reader = Reader(world.shops)
    world.service._logs.close()
    world.service.workers.close()
    world.registry = CollectorRegistry()
    world.service = world.make()
    world.app = world.service.app()
    world.deploy(world.artifact("1"))
    return world


def test_a_row_is_answered_on_the_loop_and_logged_like_any_other(loops, row):
    answer = loops.predict(row(), id="r")
    assert answer.status_code == 200
    assert loops.shops.reader.fetched == 1
    both = loops.predict(row(), row(), id="two").json()["predictions"]
    assert loops.shops.reader.fetched == 1, "two rows are read as columns"
    assert both[0]["probability"] == answer.json()["predictions"][0]["probability"]
    loops.service._logs.predictions("toy_linear").flush()
    logged = loops.logged().set_index("id")
    assert (logged.loc["r#0", "features.rate"], logged.loc["r#0", "features.size"]) == (0.2, 10.0)
    assert logged.loc["r#0", "feature_times.shop_view"] == "2026-01-02T12:00:00Z"
    assert loops.predict(row(), id="r").json() == answer.json()
    assert loops.shops.reader.fetched == 1, "a repeat is answered from memory"


def test_a_store_that_fails_on_the_loop_and_an_unknown_key_are_told_as_always(loops, row):
    loops.shops.down = True
    away = loops.predict(row())
    assert away.status_code == 503
    assert "feature store does not answer" in away.json()["error"]["reason"]
    assert loops.metric("trellis_store_failures_total", store="features") == 1
    loops.shops.down = False
    unknown = loops.predict(row(shop="nobody"))
    assert unknown.status_code == 422
    assert "shop=nobody" in unknown.json()["error"]["reason"]


def test_too_many_that_wait_for_the_store_are_refused_with_the_time_to_wait(loops, row):
    loops.limits.max_waiting = 2
    loops.service.workers._most = 2
    loops.shops.reader.gate = asyncio.Event()

    async def crowd():
        tasks = [asyncio.ensure_future(asked(loops, row())) for _ in range(3)]
        await asyncio.sleep(0.05)
        loops.shops.reader.gate.set()
        return await asyncio.gather(*tasks)

    answers = loops.runner.run(crowd())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["retry-after"] == "1"


def test_a_deadline_that_passes_while_the_store_is_read_is_kept(loops, row):
    loops.shops.reader.gate = asyncio.Event()

    async def late():
        answer = await asked(loops, row(), **{"x-timeout-ms": "50"})
        loops.shops.reader.gate.set()
        await asyncio.sleep(0.02)
        return answer

    assert loops.runner.run(late()).status_code == 504
    loops.service._logs.predictions("toy_linear").flush()
    assert len(loops.logged()) == 0, "nobody waits for it any more, so it is not made"


def test_definitions_that_were_not_there_at_the_start_are_looked_for_again(monkeypatch):
    class Late(Store):
        def row_reader(self, service):
            if not self.cells:
                raise LookupError("there is no feature service")
            return self

    store = Late({}, {}, (), ())
    rows = OneRows(store)
    sent = [type("Row", (), {"model_fields_set": {"shop"}})()]

    def is_read():
        rows.prepare([SPEC])
        return rows.read(SPEC, sent, bytes, Metrics(CollectorRegistry())) is not None

    assert not is_read()
    store.cells = {"sales": 1.0}
    assert not is_read(), "not with every look"
    monkeypatch.setattr("services.prediction.one_row.time.monotonic", lambda: 1e9)
    assert is_read()
