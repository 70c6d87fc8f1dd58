"""Batch: one right row for every row, in order, whatever the cut; resumed after a kill; bad rows named."""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trellis.contract import Batch, Predictor
from trellis.errors import ConfigError, ContractError, DataError, RequestError, RolloutError, StorageError
from trellis.patterns import BatchModel, begun_version, predict_batch
from trellis.patterns.files import tables

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning")


@pytest.fixture
def files(tmp_path, flights, arrow):
    source = tmp_path / "in.parquet"
    # Row groups that no part size divides.
    pq.write_table(arrow(flights.unseen.columns), source, row_group_size=33)
    return source, tmp_path / "out.parquet"


def expected(trained):
    inputs = {name: trained.unseen.columns[name] for name in trained.spec.inputs}
    return trained.batch.predictor.predict(inputs)


def listing(path):
    return sorted(p.name for p in path.parent.iterdir())


@pytest.mark.parametrize("part_rows", [1, 7, 33, 200, 1_000])
def test_every_cut_gives_the_same_rows_in_the_same_order(files, flights, part_rows):
    source, output = files
    rows = 12 if part_rows == 1 else len(flights.unseen)
    pq.write_table(pq.read_table(source).slice(0, rows), source, row_group_size=33)
    seen = []
    summary = predict_batch(
        flights.batch, source, output, part_rows=part_rows, keep=["tailnum"], progress=lambda *x: seen.append(x)
    )
    table = pq.read_table(output)
    assert table.column_names == ["tailnum", "probability"]
    np.testing.assert_allclose(table["probability"], expected(flights)["probability"][:rows], rtol=1e-5)
    assert [v or "" for v in table["tailnum"].to_pylist()] == flights.unseen.columns["tailnum"][:rows].tolist()
    assert (summary.rows, summary.scored, summary.rejected, summary.rejects) == (rows, rows, 0, None)
    assert (summary.version, summary.digest, summary.joined) == ("7", flights.manifest.digest, ())
    assert seen[0] == (0, rows)
    assert seen[-1] == (rows, rows)
    assert listing(output) == ["in.parquet", "out.parquet"], "nothing else is left"


def test_tensors_go_in_as_fixed_size_lists_and_out_as_lists(tmp_path, digits, arrow):
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(arrow(digits.unseen.columns), source, row_group_size=64)
    predict_batch(digits.batch, source, output, part_rows=50)
    table, wanted = pq.read_table(output), expected(digits)
    assert table.schema.field("probabilities").type == pa.list_(pa.float32())
    scores = table["probabilities"].combine_chunks().flatten().to_numpy().reshape(-1, 10)
    np.testing.assert_allclose(scores, wanted["probabilities"], rtol=1e-5, atol=1e-6)
    assert table["label"].to_pylist() == wanted["label"].tolist()


def test_an_empty_input_gives_an_empty_output(files, flights):
    source, output = files
    pq.write_table(pq.read_table(source).slice(0, 0), source)
    assert predict_batch(flights.batch, source, output).rows == 0
    assert pq.read_table(output).schema.names == ["probability"]


@pytest.mark.parametrize("start", [0, 1, 32, 33, 34, 199, 200])
def test_reading_from_any_row_gives_the_rest(files, start):
    source, _ = files
    whole = pq.read_table(source, columns=["flight"])
    with pq.ParquetFile(source) as file:
        rest = list(tables(file, ["flight"], start, 50))
    assert all(t.num_rows == 50 for t in rest[:-1])
    found = [v for t in rest for v in t["flight"].to_pylist()]
    assert found == whole["flight"].to_pylist()[start:]


# --- bad rows


def spoil(source, changes):
    """Write ``{column: {row: value}}`` into the input."""
    table = pq.read_table(source)
    for name, cells in changes.items():
        values = table[name].to_pylist()
        for row, value in cells.items():
            values[row] = value
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, source, row_group_size=33)


def test_a_bad_row_stops_the_run_with_its_number_field_and_reason(files, flights):
    source, output = files
    spoil(source, {"distance": {120: -3.0, 150: None}, "carrier": {150: "QQ"}})
    with pytest.raises(RequestError, match=r"row 120, distance: should be greater than or equal to 10"):
        predict_batch(flights.batch, source, output, part_rows=50)
    assert not output.exists()
    finished = sorted(p.name for p in output.with_name("out.parquet.work").glob("part-*.parquet"))
    assert finished == ["part-000000.parquet", "part-000001.parquet"]
    summary = predict_batch(flights.batch, source, output, on_bad="skip", part_rows=50)
    assert (summary.scored, summary.rejected) == (100, 2), "the finished parts are kept"


def test_skipped_rows_become_nulls_and_lines(files, flights):
    source, output = files
    spoil(source, {"distance": {3: -3.0, 150: None}, "carrier": {150: "QQ"}, "sched_minutes": {199: float("inf")}})
    summary = predict_batch(flights.batch, source, output, on_bad="skip", part_rows=60)
    lines = [json.loads(line) for line in Path(summary.rejects).read_text().splitlines()]
    assert [(line["row"], line["field"]) for line in lines] == [
        (3, "distance"),
        (150, "carrier"),
        (150, "distance"),
        (199, "sched_minutes"),
    ]
    assert [line["reason"] for line in lines if line["row"] == 150][1] == "is missing"
    table = pq.read_table(output)
    nulls = [i for i, v in enumerate(table["probability"].to_pylist()) if v is None]
    assert nulls == [3, 150, 199]
    good = np.setdiff1d(np.arange(200), nulls)
    np.testing.assert_allclose(
        table["probability"].take(pa.array(good)), expected(flights)["probability"][good], rtol=1e-5
    )
    assert summary.rejected == 3
    assert summary.scored == summary.rows == 200


def test_tensor_rows_are_refused_alone(tmp_path, digits, arrow):
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    values = arrow(digits.unseen.columns)["image"].to_pylist()
    values[1], values[4], values[5] = None, [17.0] * 64, [None] + [0.0] * 63
    pq.write_table(pa.table({"image": pa.array(values[:6], pa.list_(pa.float32(), 64))}), source)
    with pytest.raises(DataError, match="Write the tensors as plain lists"):  # a limit of Arrow's
        predict_batch(digits.batch, source, output, on_bad="skip")
    pq.write_table(pa.table({"image": pa.array(values[:6], pa.list_(pa.float32()))}), source)
    predict_batch(digits.batch, source, output, on_bad="skip", overwrite=True)
    table = pq.read_table(output)
    assert [v is None for v in table["probabilities"].to_pylist()] == [False, True, False, False, True, True]
    assert [v is None for v in table["label"].to_pylist()] == [False, True, False, False, True, True]
    assert not output.with_name("out.parquet.work").exists()


def test_rows_that_are_all_bad_still_have_their_place(files, flights):
    source, output = files
    spoil(source, {"carrier": dict.fromkeys(range(200), "QQ")})
    summary = predict_batch(flights.batch, source, output, on_bad="skip", part_rows=90)
    assert summary.rejected == 200
    assert pq.read_table(output)["probability"].null_count == 200


# --- bad input as a whole


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda t: t.drop_columns(["distance"]), RequestError, "distance: the input has no such column"),
        (lambda t: t.rename_columns(["tail" if n == "tailnum" else n for n in t.column_names]), RequestError, "'tail'"),
        (
            lambda t: t.set_column(0, "carrier", pa.array(range(200))),
            RequestError,
            "carrier: a column of int64 cannot hold it",
        ),
        (lambda t: t.drop_columns(["weather_temp"]), ConfigError, "has no feature store"),
    ],
)
def test_a_table_that_cannot_do_is_refused_before_anything_is_written(files, flights, change, error, text):
    source, output = files
    pq.write_table(change(pq.read_table(source)), source)
    with pytest.raises(error, match=text):
        predict_batch(flights.batch, source, output)
    assert listing(output) == ["in.parquet"]


def test_a_file_that_is_no_parquet_is_named(files, flights):
    source, output = files
    source.write_bytes(source.read_bytes()[:1_000])
    with pytest.raises(DataError, match=r"cannot be read as Parquet.*in\.parquet"):
        predict_batch(flights.batch, source, output)


def test_an_unknown_column_to_keep_is_refused(files, flights):
    with pytest.raises(ConfigError, match="Did you mean 'tailnum'"):
        predict_batch(flights.batch, *files, keep=["tailnumm"])


class Breaks(Predictor):
    def __init__(self, inner, calls):
        self.inner, self.left = inner, calls

    def predict(self, batch: Batch) -> Batch:
        self.left -= 1
        if self.left < 0:
            raise MemoryError("no more")
        return self.inner.predict(batch)

    def save(self, directory):
        raise AssertionError


def breaking(trained, calls):
    whole = trained.batch
    return BatchModel(whole.spec, Breaks(whole.predictor, calls), whole.version, whole.digest)


def test_a_predictor_that_breaks_stops_the_run_and_the_next_goes_on(files, flights):
    source, output = files
    with pytest.raises(ContractError, match="MemoryError: no more"):
        predict_batch(breaking(flights, 2), source, output, part_rows=40)
    assert begun_version(output) == "7"
    # The part size is the run's own, whatever the next one asks for.
    summary = predict_batch(breaking(flights, 3), source, output, part_rows=13)
    assert (summary.rows, summary.scored) == (200, 120)
    np.testing.assert_allclose(pq.read_table(output)["probability"], expected(flights)["probability"], rtol=1e-5)
    again = predict_batch(breaking(flights, 0), source, output)
    assert (again.rows, again.scored) == (200, 0), "a finished run is not done twice"


def test_an_unfinished_run_of_something_else_is_not_mixed_in(files, flights):
    source, output = files
    with pytest.raises(ContractError):
        predict_batch(breaking(flights, 2), source, output, part_rows=40)
    whole = flights.batch
    other = BatchModel(whole.spec, whole.predictor, "8", "another digest")
    with pytest.raises(StorageError, match=r"differs in: digest, version\."):
        predict_batch(other, source, output)
    assert predict_batch(other, source, output, overwrite=True).scored == 200
    with pytest.raises(StorageError, match="there already, and of another input or version"):
        predict_batch(whole, source, output)
    assert predict_batch(whole, source, output, overwrite=True).version == "7"


def test_an_output_that_is_somebody_elses_is_left_alone(files, flights):
    source, output = files
    output.write_text("my thesis")
    with pytest.raises(StorageError, match="there already"):
        predict_batch(flights.batch, source, output)
    assert output.read_text() == "my thesis"


# --- killed, for real, through the command line


@pytest.fixture
def command(served, files):
    """The command that scores with the champion, version 7."""
    line, options = served
    return [
        *line,
        "predict-batch",
        "flight_delay",
        "--input",
        str(files[0]),
        "--output",
        str(files[1]),
        "--json",
    ], options


def test_killed_and_started_again_it_goes_on(files, flights, command):
    source, output = files
    line, options = command
    # Many rows, so that there is time to kill between parts.
    whole = pq.read_table(source)
    pq.write_table(pa.concat_tables([whole] * 30), source, row_group_size=1_000)
    work = output.with_name("out.parquet.work")
    process = subprocess.Popen(
        [*line, "--part-rows", "50"], **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while len(list(work.glob("part-*.parquet"))) < 3 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    done = len(list(work.glob("part-*.parquet")))
    assert 3 <= done < 120
    (work / f"part-{done:06d}.partial").write_bytes(b"half a part")
    summary = json.loads(subprocess.run(line, **options, capture_output=True, text=True, check=True).stdout)
    assert (summary["rows"], summary["version"], summary["engine"]) == (6_000, "7", "onnx")
    assert summary["scored"] == 6_000 - done * 50
    wanted = np.tile(expected(flights)["probability"], 30)
    np.testing.assert_allclose(pq.read_table(output)["probability"], wanted, rtol=1e-5)
    assert not work.exists()


def test_the_command_names_what_is_wrong(files, command):
    line, options = command
    spoil(files[0], {"carrier": {5: "QQ"}})
    done = subprocess.run(line, **options, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("trellis: row 5, carrier: should be one of '9E'")
    assert "Traceback" not in done.stderr


def test_a_version_that_has_served_needs_no_registry(files, command, monkeypatch):
    from trellis import settings
    from trellis.cli.batch import locate

    for name, value in command[1]["env"].items():
        if name.startswith("TRELLIS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("trellis.cli.batch.settings", settings.load_settings)
    assert locate("flight_delay", "7") == locate("flight_delay", None)
    with pytest.raises(RolloutError, match="'digits' has no rollout plan"):
        locate("digits", None)


def test_a_kill_after_the_output_has_appeared_leaves_nothing_to_do(files, flights, monkeypatch):
    source, output = files
    with monkeypatch.context() as patch:
        patch.setattr("trellis.patterns.batch.clear", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_batch(flights.batch, source, output, part_rows=40)
    content = output.read_bytes()
    assert output.with_name("out.parquet.work").exists()
    assert predict_batch(flights.batch, source, output).scored == 0
    assert output.read_bytes() == content
    assert listing(output) == ["in.parquet", "out.parquet"]


def test_two_at_once_are_kept_apart(files, flights):
    source, output = files
    inner = []

    def second(done, rows):
        if not inner:
            inner.append(None)
            with pytest.raises(StorageError, match="Another process is at work") as caught:
                predict_batch(flights.batch, source, output, part_rows=50)
            inner[0] = caught.value

    predict_batch(flights.batch, source, output, part_rows=50, progress=second)
    assert isinstance(inner[0], StorageError)
    assert pq.read_table(output).num_rows == 200
