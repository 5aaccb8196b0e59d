-- What the simulated fleet of `weir demo` and `weir simulate` sends, and two pipelines over it.

CREATE STREAM telemetry (
  temperature DOUBLE OPTIONS (id = 1, unit = 'Cel'),
  humidity    DOUBLE OPTIONS (id = 2, unit = '%'),
  vibration   DOUBLE OPTIONS (id = 3, unit = 'mm/s'),
  status      TEXT   OPTIONS (id = 4)
) WITH (version = '1.0', lateness = INTERVAL '5 seconds', partition = 'hour');

-- Ten seconds of each device in one row.
CREATE PIPELINE climate_10s WITH (lateness = INTERVAL '5 seconds')
AS
SELECT device, tumble(ts, INTERVAL '10 seconds') AS window_start,
       avg(temperature) AS temperature_avg, min(temperature) AS temperature_min, max(temperature) AS temperature_max,
       approx_percentile_cont(temperature, 0.95) AS temperature_p95, count(*) AS n
FROM telemetry
WHERE temperature IS NOT NULL
GROUP BY device, window_start;

-- Only what is hot, as it comes.
CREATE PIPELINE hot
AS
SELECT device, ts, seq, temperature, status
FROM telemetry
WHERE temperature > 30;
