-- What is in the lake?
SELECT dataset, split, count(*) AS samples, round(sum(duration_s) / 3600, 2) AS hours FROM samples GROUP BY ALL ORDER BY ALL;

-- What could not be read, and why?
SELECT dataset, name, reason FROM quarantine ORDER BY ALL;

-- Accuracy on each task after each task
SELECT method, seed, after_task, on_task, task_name, accuracy FROM task_accuracy
WHERE protocol = 'classifier' AND modalities = 'all' AND split = 'test' ORDER BY ALL;

-- Methods side by side, over their seeds
SELECT stream, method, count(*) AS seeds, avg(average_accuracy) AS average_accuracy, avg(last_accuracy) AS last_accuracy,
       avg(forgetting) AS forgetting FROM stream_summary
WHERE protocol = 'classifier' AND modalities = 'all' AND split = 'test' GROUP BY ALL ORDER BY stream, average_accuracy DESC;

-- What is each modality worth?
SELECT stream, method, modalities, avg(last_accuracy) AS last_accuracy FROM stream_summary
WHERE protocol = 'classifier' AND split = 'test' GROUP BY ALL ORDER BY ALL;

-- Is the modality found out where it is not told, and what does that cost?
SELECT stream, method, after_task, avg(identified) AS identified, avg(agnostic_loss) AS agnostic_loss
FROM modality_identification WHERE modalities = 'all' AND split = 'test' GROUP BY ALL ORDER BY ALL;

-- How well are anchors found, also by sound that asks for pictures (audio>video)?
SELECT stream, method, modalities, metric, avg(last_value) AS last_value FROM metric_summary
WHERE protocol = 'retrieval' AND split = 'test' GROUP BY ALL ORDER BY ALL;

-- Which test samples are least like anything remembered?
SELECT key, label, predicted, novelty, nearest FROM predictions
WHERE protocol = 'retrieval' AND modalities = 'all' AND split = 'test' ORDER BY novelty DESC LIMIT 20;

-- Which classes are taken for which?
SELECT label, predicted, count(*) AS times FROM predictions
WHERE label <> predicted AND protocol = 'classifier' AND modalities = 'all' GROUP BY ALL ORDER BY times DESC LIMIT 20;

-- Which experts serve which task?
SELECT run_id, after_task, modality, stage, expert, frozen, list(round(gate_mass, 2) ORDER BY on_task) AS gate_mass_on_task
FROM expert_use WHERE split = 'val' GROUP BY ALL ORDER BY ALL;

-- What was promoted or refused, and why?
SELECT recorded_at, stream, after_task, verdict, reason FROM promotions ORDER BY recorded_at DESC LIMIT 20;

-- From a sample back to its recording and source file
SELECT samples.key, samples.shard, recordings.name, recordings.source_path
FROM samples JOIN recordings USING (dataset, recording) LIMIT 20;
