"""The report of a stream: one HTML page that holds everything it shows, and the SQL behind each figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from flows.report.svg import Cell, Line, chart, heatmap
from flows.report.thumbnails import thumbnail
from store.champions import champion
from store.lake import Lake, put
from store.ledger import Ledger
from store.types import PalimpsestError, slug

Row = dict[str, Any]
MEASURED = "stream = $stream AND split = 'test'"
QUERIES = {
    "tasks": "SELECT task, task_name, labels, train, val, test FROM tasks WHERE stream = $stream ORDER BY task",
    "summary": f"""
        SELECT s.run_id, s.method, s.seed, s.protocol, s.average_accuracy, s.last_accuracy, s.forgetting, s.bwt,
            m.last_value AS weighted_f1, s.tasks, n.trained_parameters, n.memory_bytes
        FROM stream_summary s
        LEFT JOIN (FROM metric_summary WHERE metric = 'weighted_f1') m
            USING (run_id, stream, protocol, modalities, split)
        LEFT JOIN snapshots n ON n.run_id = s.run_id AND n.after_task = s.tasks
        WHERE {MEASURED} AND modalities = 'all' ORDER BY s.protocol, s.average_accuracy DESC, s.run_id""",
    "steps": f"""
        SELECT run_id, after_task, step_accuracy FROM step_summary
        WHERE {MEASURED} AND protocol = headline(scenario) AND modalities = 'all' ORDER BY run_id, after_task""",
    "matrix": f"""
        SELECT run_id, after_task, on_task, accuracy, correct, total FROM task_accuracy
        WHERE {MEASURED} AND protocol = headline(scenario) AND modalities = 'all' AND on_task <= after_task
        ORDER BY run_id, after_task, on_task""",
    "ablation": f"""
        SELECT run_id, protocol, modalities, last_accuracy, lost_against_all FROM modality_ablation
        WHERE {MEASURED} AND NOT contains(modalities, '>')
        ORDER BY run_id, modalities <> 'all', modalities, protocol""",
    "identification": f"""
        SELECT run_id, task_name, identified, agnostic_loss FROM modality_identification
        WHERE {MEASURED} AND modalities = 'all' QUALIFY after_task = max(after_task) OVER (PARTITION BY run_id)
        ORDER BY run_id, on_task""",
    "retrieval": f"""
        SELECT run_id, modalities, metric, last_value FROM metric_summary
        WHERE {MEASURED} AND protocol = 'retrieval' AND metric <> 'weighted_f1'
        UNION ALL
        SELECT run_id, modalities, 'accuracy', last_accuracy FROM stream_summary
        WHERE {MEASURED} AND protocol = 'retrieval'
        ORDER BY run_id, modalities <> 'all', contains(modalities, '>'), modalities, metric""",
    "experts": """
        SELECT run_id, modality, stage, expert, on_task, gate_mass, frozen FROM expert_use WHERE stream = $stream
        QUALIFY rank() OVER (PARTITION BY run_id, on_task ORDER BY after_task DESC, split DESC) = 1
        ORDER BY run_id, modality, stage, expert, on_task""",
    "growth": """
        SELECT p.run_id, p.after_task, p.parameters, p.trained_parameters, p.new_parameters, p.experts, p.frozen_share,
            avg(r.gate_entropy) AS gate_entropy, avg(r.load_balance) AS load_balance
        FROM parameter_count p LEFT JOIN routing r
            ON r.run_id = p.run_id AND r.after_task = p.after_task AND r.split = 'val'
        WHERE p.stream = $stream GROUP BY ALL ORDER BY p.run_id, p.after_task""",
    "losses": """
        SELECT run_id, term, after_task, epoch, value FROM loss_terms WHERE stream = $stream
        ORDER BY run_id, term, after_task, epoch""",
    "gate": """
        SELECT recorded_at, snapshot_id, after_task, verdict, reason FROM promotions
        WHERE stream = $stream ORDER BY promotion""",
    "lineage": """
        SELECT run_id, after_task, count(*) AS samples, count(DISTINCT shard) AS shards,
            count(DISTINCT recording) AS recordings, count(DISTINCT source_path) AS files
        FROM lineage WHERE stream = $stream GROUP BY ALL ORDER BY run_id, after_task""",
    "quarantine": """
        SELECT q.reason, count(*) AS recordings, min(q.name) AS example
        FROM quarantine q JOIN streams s ON s.dataset = q.dataset
        WHERE s.stream = $stream GROUP BY ALL ORDER BY recordings DESC, q.reason""",
    "held": """
        SELECT count(*) AS samples, count(DISTINCT recording) AS recordings, sum(duration_s) / 3600 AS hours
        FROM samples JOIN streams USING (dataset) WHERE stream = $stream""",
}
ASKED = 8  # test samples whose nearest anchors are shown
NEAREST = f"""
        SELECT key, label, predicted, round(novelty, 3) AS novelty, nearest FROM predictions
        WHERE snapshot_id = $snapshot AND split = 'test' AND protocol = 'retrieval' AND modalities = 'all'
            AND len(nearest) > 0
        QUALIFY row_number() OVER (PARTITION BY label ORDER BY predicted = label, key) = 1
        ORDER BY predicted = label, key LIMIT {ASKED}"""
SHOWN = """
    SELECT i.*, c.source_path FROM sample_index i LEFT JOIN recordings c USING (dataset, recording)
    WHERE i.dataset = $dataset AND list_contains($keys, i.key)"""


def report(lake: Lake, stream: str, *, out: Path | None = None) -> Path:
    """Write what the lake knows of a stream as one self-contained page: no scripts, nothing loaded from elsewhere.

    Args:
        lake: holds the stream.
        stream: its name.
        out: the file to write; None for ``<stream>.html`` in the lake's reports.

    Returns:
        The file's path.

    Raises:
        PalimpsestError: the lake has no such stream.
    """
    ledger = Ledger(lake)
    known = {row["stream"]: row for row in ledger.rows("FROM streams ORDER BY stream")}
    if stream not in known:
        has = f"it has {', '.join(known)}" if known else "`palimpsest update STREAM` begins one"
        raise PalimpsestError(f"no stream {stream!r} in {lake.root}: {has}")
    found = {name: ledger.rows(sql, {"stream": stream}) for name, sql in QUERIES.items()}
    in_use = champion(ledger, stream)
    nearest = _nearest(ledger, known[stream]["dataset"], in_use) if in_use else []
    literals = {"$stream": stream, "$snapshot": in_use or ""}
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(percent=_percent, number=_told("{:,}"), share=_told("{:.2f}"))
    text = page.from_string(Path(__file__).with_name("report.html").read_text()).render(
        **_view(known[stream], found, in_use),
        nearest=nearest,
        measures=("accuracy", "recall@1", "recall@5", "recall@10", "map"),
        sql={name: _dedent(_filled(sql, literals)) for name, sql in {**QUERIES, "nearest": NEAREST}.items()},
    )
    path = out or lake.reports / f"{slug(stream)}.html"
    put(path, text.encode())
    return path


def _nearest(ledger: Ledger, dataset: str, snapshot: str) -> list[Row]:
    """Some test samples, those taken for another class first, and the anchors that lay nearest to each, to look at."""
    asked = ledger.rows(NEAREST, {"snapshot": snapshot})
    keys = sorted({key for row in asked for key in (row["key"], *row["nearest"])})
    index = {row["key"]: row for row in ledger.rows(SHOWN, {"dataset": dataset, "keys": keys})}

    def look(key: str) -> Row:
        row = index.get(key)  # None of what was erased since
        if row is None:
            return {"glance": "", "label": "", "source": "", "at": None}
        label, source = ", ".join(row["labels"] or ()), row["source_path"] or row["recording"]
        return {"glance": thumbnail(ledger.lake, row), "label": label, "source": source, "at": row["start_s"]}

    return [{**row, **look(row["key"]), "label": row["label"], "anchors": map(look, row["nearest"])} for row in asked]


def _view(stream: Row, found: Mapping[str, list[Row]], in_use: str | None) -> dict[str, Any]:
    """What the template shows: rows by run, the champion's run first, and charts."""
    best = (in_use or "").rpartition("/")[0]
    order = {row["run_id"]: None for row in sorted(found["summary"], key=lambda row: row["run_id"] != best)}
    names = _run_names(found["summary"])
    tasks = [row["task_name"] for row in found["tasks"]]
    steps, matrix, ablation, lineage = (_by_run(found[name]) for name in ("steps", "matrix", "ablation", "lineage"))
    experts, losses = _by_run(found["experts"]), _by_run(found["losses"])
    told = next((run for run in order if run in experts or run in losses), None)
    kinds = {row["run_id"]: row["method"] for row in found["summary"]}
    lines = [
        Line(names[run], [(row["after_task"], row["step_accuracy"]) for row in steps[run]], kinds[run], run == best)
        for run in order
        if run in steps
    ]
    return {
        "stream": stream,
        "champion": in_use,
        "best": best,
        "names": names,
        "tasks": found["tasks"],
        "held": found["held"][0],
        "gate": found["gate"],
        "summary": found["summary"],
        "curves": chart(lines, ticks=dict(enumerate(tasks, 1)), top=1.0, percent=True) if lines else None,
        "matrices": {run: _square(matrix[run], len(tasks)) for run in order if run in matrix},
        "ablation": {run: _subsets(ablation[run]) for run in order if run in ablation},
        "identification": {run: rows for run, rows in _by_run(found["identification"]).items() if run in order},
        "retrieval": {run: _by_metric(rows) for run, rows in _by_run(found["retrieval"]).items() if run in order},
        "told": told,
        "experts": _experts(experts.get(told or "", [])),
        "growth": _by_run(found["growth"]).get(told or "", []),
        "losses": _losses(losses.get(told or "", [])),
        "lineage": lineage.get(best or told or "", []),
        "quarantine": found["quarantine"],
    }


def _run_names(summary: Iterable[Row]) -> dict[str, str]:
    """A short name for each run: method and seed, and the configuration's digest where that names several."""
    short = {row["run_id"]: f"{row['method']} · seed {row['seed']}" for row in summary}
    names = list(short.values())
    return {run: name if names.count(name) == 1 else f"{name} · {run[-8:]}" for run, name in short.items()}


def _square(rows: Iterable[Row], tasks: int) -> list[list[Row | None]]:
    """The accuracy matrix as rows of cells, one a task measured; None above the diagonal."""
    cells = {(row["after_task"], row["on_task"]): row for row in rows}
    learned = sorted({after for after, _ in cells})
    return [[cells.get((after, on)) for on in range(1, max(tasks, learned[-1]) + 1)] for after in learned]


def _subsets(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Modality set -> protocol -> row."""
    table: dict[str, dict[str, Row]] = {}
    for row in rows:
        table.setdefault(row["modalities"], {})[row["protocol"]] = row
    return table


def _by_metric(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Modality set -> metric -> value after the last task."""
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        table.setdefault(row["modalities"], {})[row["metric"]] = row["last_value"]
    return table


def _experts(rows: Iterable[Row]) -> dict[str, str]:
    """A map for each adapter: a row an expert, a column a task."""
    maps: dict[str, str] = {}
    for (modality, stage), use in groupby(rows, key=lambda row: (row["modality"], row["stage"])):
        cells = [
            Cell(
                (row["on_task"], row["expert"]),
                row["gate_mass"],
                f"expert {row['expert']}, task {row['on_task']}: {_percent(row['gate_mass'])} %"
                + (", frozen" if row["frozen"] else ""),
                row["frozen"],
            )
            for row in use
        ]
        maps[f"{modality}, stage {stage}"] = heatmap(cells)
    return maps


def _losses(rows: Sequence[Row]) -> dict[str, str]:
    """A chart of each loss term over the epochs of all tasks, one line a task."""
    epochs: dict[int, int] = {}
    for row in rows:
        epochs[row["after_task"]] = max(row["epoch"], epochs.get(row["after_task"], 0))
    begun = dict(zip(sorted(epochs), accumulate((epochs[task] for task in sorted(epochs)), initial=0), strict=False))
    terms: dict[str, list[Line]] = {}
    for (term, task), values in groupby(rows, key=lambda row: (row["term"], row["after_task"])):
        points = [(begun[task] + row["epoch"], row["value"]) for row in values]
        terms.setdefault(term, []).append(Line(f"{term}, task {task}", points))
    ticks, span = {before + 1: str(task) for task, before in begun.items()}, (1, sum(epochs.values()))
    return {
        term: chart(lines, ticks=ticks, span=span, width=330, height=150, legend=False) for term, lines in terms.items()
    }


def _by_run(rows: Iterable[Row]) -> dict[str, list[Row]]:
    return {run: list(group) for run, group in groupby(rows, key=lambda row: row["run_id"])}


def _told(form: str) -> Callable[[float | None], str]:
    return lambda value: "–" if value is None else form.format(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _filled(sql: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        sql = sql.replace(name, "'" + value.replace("'", "''") + "'")
    return sql


def _dedent(sql: str) -> str:
    return "\n".join(line.removeprefix(" " * 8) for line in sql.strip().splitlines())
