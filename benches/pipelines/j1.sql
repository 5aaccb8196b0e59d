-- The stream and the pipeline of the benchmark jobs: raw rows, and per device and minute the usual figures.
-- Frames of 16 records change places in the job, so what is in them comes up to 32 s late.

CREATE STREAM telemetry (
  temperature DOUBLE OPTIONS (id = 1, unit = 'Cel'),
  humidity    DOUBLE OPTIONS (id = 2, unit = '%'),
  vibration   DOUBLE OPTIONS (id = 3, unit = 'mm/s'),
  status      TEXT   OPTIONS (id = 4)
) WITH (version = '1.0', lateness = INTERVAL '40 seconds', partition = 'hour');

CREATE PIPELINE j1_1m
  WITH (lateness = INTERVAL '40 seconds', partition = 'hour')
AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start,
       avg(temperature) AS temperature_avg,
       min(temperature) AS temperature_min,
       max(temperature) AS temperature_max,
       approx_percentile_cont(temperature, 0.95) AS temperature_p95,
       count(*) AS n
FROM telemetry
GROUP BY device, window_start;
