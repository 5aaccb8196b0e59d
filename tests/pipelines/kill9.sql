-- What the crash test computes: aggregates whose state is more than a sum, and one with DISTINCT and one with FILTER.

CREATE STREAM telemetry (
  temperature DOUBLE OPTIONS (id = 1, unit = 'Cel'),
  humidity    DOUBLE OPTIONS (id = 2, unit = '%'),
  vibration   DOUBLE OPTIONS (id = 3, unit = 'mm/s'),
  status      TEXT   OPTIONS (id = 4)
) WITH (version = '1.0', lateness = INTERVAL '10 seconds', partition = 'hour');

CREATE PIPELINE kill9_1m
  WITH (lateness = INTERVAL '10 seconds', partition = 'hour')
AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start,
       count(*) AS n,
       avg(temperature) AS temperature_avg,
       min(temperature) AS temperature_min,
       max(temperature) AS temperature_max,
       stddev(temperature) AS temperature_stddev,
       approx_percentile_cont(temperature, 0.95) AS temperature_p95,
       count(DISTINCT status) AS states,
       count(*) FILTER (WHERE status = 'fault') AS faults
FROM telemetry
GROUP BY device, window_start;

-- Of what the first one gives.
CREATE PIPELINE kill9_10m WITH (lateness = INTERVAL '0 seconds') AS
SELECT device, tumble(window_start, INTERVAL '10 minutes') AS start, sum(n) AS n, max(temperature_max) AS temperature_max
FROM kill9_1m GROUP BY device, start;

-- Over all devices, so over all shards.
CREATE PIPELINE kill9_fleet WITH (lateness = INTERVAL '10 seconds') AS
SELECT tumble(ts, INTERVAL '1 minute') AS window_start, status, count(*) AS n, min(temperature) AS temperature_min
FROM telemetry GROUP BY window_start, status;
