-- What the fleets of `weir torture` send, and a pipeline that its verdict computes once more from the raw rows.

CREATE STREAM telemetry (
  temperature DOUBLE OPTIONS (id = 1, unit = 'Cel'),
  humidity    DOUBLE OPTIONS (id = 2, unit = '%'),
  vibration   DOUBLE OPTIONS (id = 3, unit = 'mm/s'),
  status      TEXT   OPTIONS (id = 4)
) WITH (version = '1.0', lateness = INTERVAL '20 seconds', partition = 'hour');

CREATE PIPELINE torture_10s
  WITH (lateness = INTERVAL '20 seconds', partition = 'hour')
AS
SELECT device, tumble(ts, INTERVAL '10 seconds') AS window_start,
       count(*) AS n,
       avg(temperature) AS mean,
       min(temperature) AS low,
       max(temperature) AS high,
       stddev(temperature) AS spread,
       count(DISTINCT status) AS states,
       count(*) FILTER (WHERE status = 'fault') AS faults
FROM telemetry
GROUP BY device, window_start;
