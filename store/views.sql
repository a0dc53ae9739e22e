-- Every metric of Palimpsest is defined here and nowhere else. a[t, i] is the accuracy on task i after learning task t.

-- Recordings that were refused and not mended since.
CREATE OR REPLACE VIEW quarantine AS
SELECT dataset, name, recording, source_path, reason, recorded_at FROM quarantined WHERE reason IS NOT NULL;

-- Every sample with all its modalities and where its parts lie: its shard's, and what sidecar shards added or replaced.
CREATE OR REPLACE VIEW sample_index AS
WITH added AS (
    SELECT c.dataset, c.key, list(c.modality ORDER BY c.modality) AS names, list({
        'modality': c.modality, 'shard': c.shard, 'url': h.url, 'offset': c."offset", 'size': c.size, 'checksum': c.checksum
    } ORDER BY c.modality) AS parts
    FROM sidecars c JOIN shards h USING (dataset, shard) GROUP BY ALL
)
SELECT s.* EXCLUDE (modalities),
    list_concat(s.modalities, list_filter(coalesce(a.names, []), lambda m: NOT list_contains(s.modalities, m))) AS modalities,
    h.url, coalesce(a.parts, []) AS sidecars
FROM samples s JOIN shards h USING (dataset, shard) LEFT JOIN added a USING (dataset, key);

-- The protocol that a scenario is judged by.
CREATE OR REPLACE MACRO headline(scenario) AS if(scenario = 'task-incremental', 'task-aware', 'classifier');

-- The predictions, and those of protocol task-aware: what the classifier says among the classes of the sample's own task
-- alone, as if the task's identity were given. Streams whose tasks are not made of classes have none.
CREATE OR REPLACE VIEW answers AS
SELECT * EXCLUDE (predicted_in_task, given) REPLACE (
    if(given, 'task-aware', protocol) AS protocol, if(given, predicted_in_task, predicted) AS predicted,
    if(given, NULL, labels) AS labels, if(given, NULL, predicted_labels) AS predicted_labels
)
FROM (SELECT *, unnest(if(predicted_in_task IS NULL, [false], [false, true])) AS given FROM predictions);

-- Accuracy from the single predictions: one row a run, task learned, task measured, protocol, modality set and split.
CREATE OR REPLACE VIEW task_accuracy AS
SELECT
    p.run_id, r.stream, r.scenario, r.method, r.seed, p.after_task, p.on_task, t.task_name, p.protocol, p.modalities,
    p.split, count(*) FILTER (p.predicted = p.label) / count(*) AS accuracy,
    count(*) FILTER (p.predicted = p.label) AS correct, count(*) AS total,
    max(p.snapshot_id) AS snapshot_id, max(p.recorded_at) AS measured_at
FROM answers p JOIN runs r USING (run_id) LEFT JOIN tasks t ON t.stream = r.stream AND t.task = p.on_task
GROUP BY ALL;

-- One row a run and step; a[t, 1], a[t, 2] ... as a list.
CREATE OR REPLACE VIEW accuracy_matrix AS
SELECT run_id, stream, scenario, method, seed, protocol, modalities, split, after_task,
    list(round(accuracy, 4) ORDER BY on_task) AS accuracy_on_task, avg(accuracy) AS step_accuracy
FROM task_accuracy WHERE on_task <= after_task
GROUP BY ALL;

-- After each task t: step_accuracy A_t = mean of a[t, i] over i <= t; new_accuracy = a[t, t];
-- forgetting = mean over i < t of max over s < t of a[s, i], less a[t, i]; bwt = mean over i < t of a[t, i] - a[i, i].
CREATE OR REPLACE VIEW step_summary AS
WITH traced AS (
    SELECT *,
        max(accuracy) OVER (one ORDER BY after_task ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS best_before,
        max(accuracy) FILTER (after_task = on_task) OVER one AS when_learned
    FROM task_accuracy WHERE on_task <= after_task
    WINDOW one AS (PARTITION BY run_id, protocol, modalities, split, on_task)
)
SELECT run_id, stream, scenario, method, seed, protocol, modalities, split, after_task,
    avg(accuracy) AS step_accuracy,
    any_value(accuracy) FILTER (on_task = after_task) AS new_accuracy,
    avg(best_before - accuracy) FILTER (on_task < after_task) AS forgetting,
    avg(accuracy - when_learned) FILTER (on_task < after_task) AS bwt
FROM traced GROUP BY ALL;

-- One row a run: average_accuracy = mean of A_t over t; last_accuracy, forgetting and bwt are those after the last task.
CREATE OR REPLACE VIEW stream_summary AS
SELECT run_id, stream, scenario, method, seed, protocol, modalities, split,
    avg(step_accuracy) AS average_accuracy, arg_max(step_accuracy, after_task) AS last_accuracy,
    arg_max(forgetting, after_task) AS forgetting, arg_max(bwt, after_task) AS bwt, max(after_task) AS tasks
FROM step_summary GROUP BY ALL;

-- What a run has cost by its last snapshot; seconds are those on the clock, of an interrupted task since it was last taken up.
CREATE OR REPLACE VIEW run_cost AS
SELECT n.run_id, arg_max(n.memory_bytes, n.after_task) AS memory_bytes,
    arg_max(n.trained_parameters, n.after_task) AS trained_parameters, sum(e.seconds) AS seconds
FROM snapshots n LEFT JOIN events e ON e.kind = 'learned' AND e.subject = n.snapshot_id
GROUP BY ALL;

-- What a method told of each task that it learned; what it did not tell is null.
CREATE OR REPLACE VIEW learned AS
SELECT n.run_id, r.stream, r.method, r.seed, n.after_task, n.parameters, n.trained_parameters, unnest(e.told)
FROM (
    SELECT subject, TRY_CAST(TRY_CAST(detail AS JSON) AS STRUCT(
        loss MAP(VARCHAR, DOUBLE[]), backbone_parameters BIGINT, top_k BIGINT, experts MAP(VARCHAR, BIGINT),
        frozen MAP(VARCHAR, BIGINT[]), gate_mass MAP(VARCHAR, DOUBLE[]), gate_entropy MAP(VARCHAR, DOUBLE),
        routed STRUCT(on_task BIGINT, split VARCHAR, gate_mass MAP(VARCHAR, DOUBLE[]), gate_entropy MAP(VARCHAR, DOUBLE))[]
    )) AS told
    FROM events WHERE kind = 'learned'
) e JOIN snapshots n ON n.snapshot_id = e.subject JOIN runs r USING (run_id);

-- Each weighted term of the loss: its mean over the steps of an epoch.
CREATE OR REPLACE VIEW loss_terms AS
SELECT run_id, stream, method, seed, after_task, generate_subscripts(term.value, 1) AS epoch, term.key AS term,
    unnest(term.value) AS value
FROM (SELECT * EXCLUDE (loss), unnest(map_entries(loss)) AS term FROM learned);

-- Parameters after each task: all of them, backbones included; those that can still be trained; those that came with the task
-- (in the first one, all beside the backbones'). frozen_share = frozen experts / experts, over all adapters.
CREATE OR REPLACE VIEW parameter_count AS
SELECT run_id, stream, method, seed, after_task, parameters, trained_parameters,
    parameters - coalesce(
        lag(parameters) OVER (PARTITION BY run_id ORDER BY after_task), backbone_parameters
    ) AS new_parameters,
    list_sum(map_values(experts))::BIGINT AS experts,
    list_sum(list_transform(map_values(frozen), lambda f: len(f))) / list_sum(map_values(experts)) AS frozen_share
FROM learned;

-- Where each adapter (modality-stage) sent the samples that have its modality: the training samples of the task just learned,
-- by which experts are frozen, and held-out ones of every task seen. gate_mass is each expert's share of all gates.
-- gate_entropy = mean over the samples of the entropy of their K gates, / ln K: 1 where K experts count alike for a sample, 0
-- where one decides. load_balance = entropy of gate_mass, / ln E: 1 where all E experts are used alike, 0 where one is.
CREATE OR REPLACE VIEW routing AS
WITH measured AS (
    SELECT *, unnest(list_prepend({
        'on_task': after_task, 'split': 'train', 'gate_mass': gate_mass, 'gate_entropy': gate_entropy
    }, coalesce(routed, []))) AS m
    FROM learned
), by_adapter AS (
    SELECT *, unnest(map_entries(m.gate_mass)) AS adapter FROM measured
), shares AS (
    SELECT *, list_transform(adapter.value, lambda v: v / list_sum(adapter.value)) AS p
    FROM by_adapter WHERE list_sum(adapter.value) > 0
)
SELECT run_id, stream, method, seed, after_task, m.on_task, m.split, split_part(adapter.key, '-', 1) AS modality,
    split_part(adapter.key, '-', 2)::BIGINT AS stage, m.gate_entropy[adapter.key] / nullif(ln(top_k), 0) AS gate_entropy,
    list_sum(list_transform(p, lambda v: CASE WHEN v > 0 THEN -v * ln(v) ELSE 0 END)) / nullif(ln(len(p)), 0) AS load_balance,
    p AS gate_mass, coalesce(frozen[adapter.key], []) AS frozen
FROM shares;

-- routing, one row an expert; experts are numbered from 0.
CREATE OR REPLACE VIEW expert_use AS
SELECT * EXCLUDE (gate_entropy, load_balance, gate_mass, frozen), gate_mass[expert + 1] AS gate_mass,
    list_contains(frozen, expert) AS frozen
FROM (SELECT *, unnest(range(len(gate_mass))) AS expert FROM routing);

-- What each recording brings to a run's average_accuracy, which is the sum over on_task of sum(credit) / sum(samples): with
-- T steps, a right answer after task t is worth 1 / (T * tasks measured then). Figures are resampled by recording from this.
CREATE OR REPLACE VIEW recording_credit AS
WITH steps AS (
    SELECT run_id, protocol, modalities, split, after_task, count(DISTINCT on_task) AS tasks,
        count(*) OVER (PARTITION BY run_id, protocol, modalities, split) AS steps
    FROM answers WHERE on_task <= after_task GROUP BY run_id, protocol, modalities, split, after_task
)
SELECT p.run_id, r.stream, r.scenario, r.method, r.seed, p.protocol, p.modalities, p.split, p.on_task, s.recording,
    count(*) / count(DISTINCT p.after_task) AS samples,
    coalesce(sum(1 / (t.steps * t.tasks)) FILTER (p.predicted = p.label), 0) AS credit
FROM answers p
JOIN steps t USING (run_id, protocol, modalities, split, after_task)
JOIN runs r USING (run_id)
JOIN streams d USING (stream)
JOIN samples s ON s.dataset = d.dataset AND s.key = p.key
WHERE p.on_task <= p.after_task
GROUP BY ALL;

-- What each modality is worth at the end: last accuracy per modality set, beside that of all of them.
CREATE OR REPLACE VIEW modality_ablation AS
SELECT one.run_id, one.stream, one.method, one.seed, one.protocol, one.split, one.modalities, one.last_accuracy,
    whole.last_accuracy - one.last_accuracy AS lost_against_all
FROM stream_summary one
JOIN stream_summary whole USING (run_id, protocol, split) WHERE whole.modalities = 'all';

-- How often a method that is not told through which modality it meets a sample finds that out, by the task measured; where it
-- does not ask there is no row. agnostic_loss = accuracy where it is told, less that where it is not.
CREATE OR REPLACE VIEW modality_identification AS
SELECT p.run_id, r.stream, r.method, r.seed, p.after_task, p.on_task, t.task_name, p.modalities, p.split,
    avg(p.identified) AS identified, any_value(named.accuracy) - count(*) FILTER (p.predicted = p.label) / count(*) AS agnostic_loss
FROM predictions p JOIN runs r USING (run_id)
JOIN task_accuracy named ON named.run_id = p.run_id AND named.after_task = p.after_task AND named.on_task = p.on_task
    AND named.modalities = p.modalities AND named.split = p.split AND named.protocol = 'classifier'
LEFT JOIN tasks t ON t.stream = r.stream AND t.task = p.on_task
WHERE p.protocol = 'agnostic' AND p.identified IS NOT NULL
GROUP BY ALL;

-- Other figures than accuracy, one a row. weighted_f1 = F1 of each class, 2 right / (samples + times predicted), weighted by
-- its samples; where sets of labels were predicted, a sample and a prediction count for each class in theirs. Of protocol
-- retrieval, where a query's nearest anchors were ranked, up to K of them (RANKED in learner/evaluate.py):
-- recall@k = share of queries with an anchor of their label among the nearest k; map = mean of the queries' average precision,
-- the sum over ranks i that hold an anchor of its label of (such anchors up to i) / i, divided by min(such anchors in all, K).
CREATE OR REPLACE VIEW task_metrics AS
WITH confusion AS (
    SELECT run_id, after_task, on_task, protocol, modalities, split, coalesce(labels, [label]) AS truth,
        coalesce(predicted_labels, [predicted]) AS told, count(*) AS times
    FROM answers GROUP BY ALL
), by_class AS (
    SELECT *, unnest(list_distinct(list_concat(truth, told))) AS class FROM confusion
), counted AS (
    SELECT run_id, after_task, on_task, protocol, modalities, split, class,
        coalesce(sum(times) FILTER (list_contains(truth, class)), 0) AS samples,
        coalesce(sum(times) FILTER (list_contains(told, class)), 0) AS guesses,
        coalesce(sum(times) FILTER (list_contains(truth, class) AND list_contains(told, class)), 0) AS hits
    FROM by_class GROUP BY ALL
), found AS (
    SELECT run_id, after_task, on_task, protocol, modalities, split, count(*) FILTER (hit <= 1) / count(*) AS in_1,
        count(*) FILTER (hit <= 5) / count(*) AS in_5, count(*) FILTER (hit <= 10) / count(*) AS in_10,
        avg(average_precision) AS map
    FROM predictions WHERE protocol = 'retrieval' AND average_precision IS NOT NULL GROUP BY ALL
), figures AS (
    SELECT run_id, after_task, on_task, protocol, modalities, split, 'weighted_f1' AS metric,
        sum(samples * 2 * hits / (samples + guesses)) / sum(samples) AS value
    FROM counted GROUP BY ALL
    UNION ALL
    SELECT * EXCLUDE (in_1, in_5, in_10, map), unnest(['recall@1', 'recall@5', 'recall@10', 'map']) AS metric,
        unnest([in_1, in_5, in_10, map]) AS value
    FROM found
)
SELECT f.run_id, r.stream, r.scenario, r.method, r.seed, f.after_task, f.on_task, t.task_name, f.protocol, f.modalities,
    f.split, f.metric, f.value
FROM figures f JOIN runs r USING (run_id) LEFT JOIN tasks t ON t.stream = r.stream AND t.task = f.on_task;

-- One row a run and metric, as in stream_summary: the mean over the tasks seen so far, averaged over the steps and at the end.
CREATE OR REPLACE VIEW metric_summary AS
WITH steps AS (
    SELECT run_id, stream, scenario, method, seed, protocol, modalities, split, metric, after_task, avg(value) AS step_value
    FROM task_metrics WHERE on_task <= after_task GROUP BY ALL
)
SELECT * EXCLUDE (after_task, step_value), avg(step_value) AS average_value, arg_max(step_value, after_task) AS last_value
FROM steps GROUP BY ALL;

-- What held-out samples of known things look like to a snapshot, by modality set: one in forty lies farther from every anchor
-- than novelty_bound, one in forty is classified less surely than confidence_bound; at most one in twenty does either.
CREATE OR REPLACE VIEW familiarity AS
SELECT snapshot_id, modalities, quantile_cont(novelty, 0.975) FILTER (protocol = 'retrieval') AS novelty_bound,
    quantile_cont(confidence, 0.025) FILTER (protocol = 'classifier') AS confidence_bound, count(novelty) AS samples
FROM predictions WHERE split = 'val' GROUP BY ALL HAVING count(novelty) > 0;

-- Where a figure comes from: the snapshot it was measured on, the samples that snapshot had learned, their shards and sources.
CREATE OR REPLACE VIEW lineage AS
SELECT n.snapshot_id, n.run_id, r.stream, r.method, r.seed, n.after_task, n.path AS snapshot, ts.task AS learned_task,
    ts.dataset, ts.key, s.shard, h.url AS shard_url, h.sha256 AS shard_sha256, s.recording, c.source_path
FROM snapshots n
JOIN runs r USING (run_id)
JOIN task_samples ts ON ts.stream = r.stream AND ts.task <= n.after_task AND ts.split = 'train'
JOIN tasks k ON k.stream = ts.stream AND k.task = ts.task AND (ts.manifest IS NULL OR ts.manifest = k.manifest)
JOIN samples s ON s.dataset = ts.dataset AND s.key = ts.key
LEFT JOIN shards h ON h.dataset = s.dataset AND h.shard = s.shard
LEFT JOIN recordings c ON c.dataset = s.dataset AND c.recording = s.recording;
