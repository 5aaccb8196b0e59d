//! What `check` says to a set of mistakes, word for word: `mistakes.txt` beside this file.
//!
//! After a change that is meant: `WEIR_UPDATE=1 cargo test`, and read the difference as a newcomer would.

#[test]
fn every_mistake_is_explained_as_it_always_was() {
    let mut said = String::new();
    for (name, sql) in [
        (
            "open_quote",
            r##"CREATE PIPELINE a AS SELECT device, ts FROM telemetry;
CREATE PIPELINE b AS SELECT ts FROM telemetry WHERE status = 'ok;
"##,
        ),
        (
            "wrong_keyword_at_the_start",
            r##"CRAETE STREAM s (x DOUBLE);
CREATE PIPLINE p AS SELECT ts FROM telemetry;
SELECT 1;
INSERT INTO t VALUES (1);"##,
        ),
        (
            "slip_in_a_clause",
            r##"CREATE PIPELINE p AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, avg(humidity) AS h
FROM telemetry
GRUOP BY device, window_start;"##,
        ),
        ("slip_in_from", r##"CREATE PIPELINE p AS SELECT device, ts FORM telemetry;"##),
        (
            "missing_semicolon",
            r##"CREATE STREAM s (x DOUBLE)
CREATE PIPELINE p AS SELECT ts, y FROM s;"##,
        ),
        (
            "not_in_this_version",
            r##"CREATE TABLE sites (device TEXT) WITH (location = 's.csv');
CREATE ROLLUP hot;
CREATE PIPELINE j AS SELECT ts FROM sites;"##,
        ),
        (
            "create_or_replace",
            r##"CREATE OR REPLACE PIPELINE p AS SELECT ts FROM telemetry;
CREATE STREAM IF NOT EXISTS s (x DOUBLE);"##,
        ),
        (
            "unknown_stream",
            r##"CREATE PIPELINE p AS SELECT ts FROM telemtry;
CREATE PIPELINE q AS SELECT ts FROM weather;
CREATE PIPELINE r AS SELECT ts FROM _losses;"##,
        ),
        (
            "unknown_columns",
            r##"CREATE PIPELINE p AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start,
       avg(temprature) AS t, max(t.humidity) AS h, min("Status") AS s
FROM telemetry
WHERE vibartion > 1 AND status = "ok"
GROUP BY device, window_start;"##,
        ),
        (
            "unknown_function",
            r##"CREATE PIPELINE p AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, averge(humidity) AS a, percentile(humidity, 0.5) AS b, frobnicate(1) AS c
FROM telemetry GROUP BY device, window_start;"##,
        ),
        (
            "no_window",
            r##"CREATE PIPELINE p AS SELECT device, avg(temperature) AS t FROM telemetry GROUP BY device;
CREATE PIPELINE q AS SELECT count(*) AS n FROM telemetry;"##,
        ),
        (
            "window_called_ts",
            r##"CREATE PIPELINE p AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS ts, count(*) AS n
FROM telemetry GROUP BY device, ts;"##,
        ),
        (
            "wrong_windows",
            r##"CREATE PIPELINE p0 AS SELECT device, tumble(ts, INTERVAL '1 month') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p1 AS SELECT device, tumble(ts, INTERVAL '0 seconds') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p2 AS SELECT device, tumble(ts, '1 minute') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p3 AS SELECT device, tumble(INTERVAL '1 minute', ts) AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p4 AS SELECT device, tumble(ts_ingest, INTERVAL '1 minute') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p5 AS SELECT device, tumble(ts) AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p6 AS SELECT device, tumble(ts, INTERVAL '10 minuts') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p7 AS SELECT device, date_bin(INTERVAL '1 hour', ts, TIMESTAMP '2020-01-01') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p8 AS SELECT device, hop(ts, INTERVAL '1 minute') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p9 AS SELECT device, tumble(ts, INTERVAL '1 minute' * 2) AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p10 AS SELECT device, date_trunc('minute', ts) AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;"##,
        ),
        (
            "wrong_hops_and_sessions",
            r##"CREATE PIPELINE p0 AS SELECT device, hop(ts, INTERVAL '5 minutes', INTERVAL '1 minute') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p1 AS SELECT device, hop(ts, INTERVAL '1 second', INTERVAL '1 hour') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p2 AS SELECT device, hop(ts, INTERVAL '59 minutes', INTERVAL '3 days 1 second') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p3 AS SELECT device, hop(ts, INTERVAL '1 minute', INTERVAL '5 minuts') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p4 AS SELECT device, session(ts) AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p5 AS SELECT device, session(ts, INTERVAL '5 minutes') AS window_start, count(*) AS n FROM telemetry WHERE session(ts, INTERVAL '5 minutes') > ts GROUP BY device, window_start;
CREATE PIPELINE p6 AS SELECT device, session(ts, INTERVAL '5 minutes') AS window_start, session(ts, INTERVAL '6 minutes') AS b, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE p7 AS SELECT device, ts, count(*) AS n FROM telemetry GROUP BY device, hop(ts, INTERVAL '1 minute', INTERVAL '5 minutes');
CREATE PIPELINE p8 AS SELECT device, sessions(ts, INTERVAL '5 minutes') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;"##,
        ),
        (
            "aggregates_that_differ_in_a_cast",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS w, avg(temperature) AS a, avg(CAST(temperature AS DECIMAL(18, 3))) AS b FROM telemetry GROUP BY device, w;
CREATE PIPELINE q AS SELECT device, tumble(ts, INTERVAL '1 minute') AS w, avg(temperature) AS a, avg(CAST(temperature AS DECIMAL(18, 3)) * 1) AS b FROM telemetry GROUP BY device, w;"##,
        ),
        (
            "tables",
            r##"CREATE TABLE sites (device TEXT, site TEXT OPTIONS (id = 3), floor BIGINT NOT NULL, plan DOUBLE[], temperature DOUBLE);
CREATE TABLE models (model TEXT, maker TEXT) WITH (location = 'gs://bucket/models.csv', key = 'modell');
CREATE TABLE rooms (device TEXT, room TEXT, area DOUBLE) WITH (location = 'rooms.csv', key = 'device, room', reload = true);
CREATE TABLE ok (device TEXT, site TEXT, floor BIGINT, temperature DOUBLE) WITH (location = 'ok.csv', key = 'device');
CREATE PIPELINE p0 AS SELECT ts, site FROM ok;
CREATE PIPELINE p1 AS SELECT t.ts, o.sight FROM telemetry t JOIN ok o ON t.device = o.device;
CREATE PIPELINE p2 AS SELECT t.ts, site FROM telemetry t JOIN okay o ON t.device = o.device;
CREATE PIPELINE p3 AS SELECT t.ts, site FROM telemetry t JOIN ok o ON t.humidity = o.floor;
CREATE PIPELINE p4 AS SELECT t.ts, site FROM telemetry t JOIN ok o ON t.device = o.device AND t.status = o.site;
CREATE PIPELINE p5 AS SELECT t.ts, site FROM telemetry t RIGHT JOIN ok o ON t.device = o.device;
CREATE PIPELINE p6 AS SELECT t.ts, site FROM telemetry t JOIN ok o;
CREATE PIPELINE p7 AS SELECT t.ts, temperature FROM telemetry t JOIN ok o ON t.device = o.device;
CREATE PIPELINE p8 AS SELECT a.ts FROM telemetry a JOIN telemetry b ON a.device = b.device;
CREATE PIPELINE p9 AS SELECT ts, site FROM telemetry JOIN ok ON upper(telemetry.device) = ok.device;
CREATE PIPELINE p10 AS SELECT t.ts, o.site, p.site FROM telemetry t JOIN ok o ON t.device = o.device JOIN ok p ON t.status = p.device;
CREATE PIPELINE p11 AS SELECT t.ts, site FROM telemetry t JOIN rooms r ON t.device = r.device;"##,
        ),
        (
            "joins_of_streams",
            r##"CREATE STREAM alarms (code BIGINT, status TEXT) WITH (schema = 7);
CREATE TABLE codes (code BIGINT, status TEXT, word TEXT) WITH (location = 'codes.csv', key = 'code, status');
CREATE PIPELINE p1 AS SELECT a.ts FROM alarms a JOIN telemetry t ON a.device = t.device;
CREATE PIPELINE p2 AS SELECT a.ts FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts > a.ts - INTERVAL '1 minute';
CREATE PIPELINE p3 AS SELECT a.ts FROM alarms a JOIN telemetry t ON a.status = t.status AND t.ts = a.ts;
CREATE PIPELINE p4 AS SELECT a.ts FROM alarms a JOIN telemetry t USING (device);
CREATE PIPELINE p5 AS SELECT a.ts FROM alarms a RIGHT JOIN telemetry t ON a.device = t.device AND t.ts = a.ts;
CREATE PIPELINE p6 AS SELECT a.ts FROM alarms a FULL JOIN telemetry t ON a.device = t.device AND t.ts = a.ts;
CREATE PIPELINE p7 AS SELECT a.ts FROM alarms a CROSS JOIN telemetry t;
CREATE PIPELINE p8 AS SELECT a.ts FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts JOIN alarms b ON b.device = a.device AND b.ts = a.ts;
CREATE PIPELINE p9 AS SELECT a.ts FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts BETWEEN a.ts + INTERVAL '5 seconds' AND a.ts - INTERVAL '10 seconds';
CREATE PIPELINE p10 AS SELECT a.ts FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts BETWEEN a.ts - INTERVAL '1 month' AND a.ts;
CREATE PIPELINE p11 AS SELECT a.ts FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts BETWEEN a.ts - INTERVAL '3 days' AND a.ts;
CREATE PIPELINE p12 AS SELECT ts, vibration FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts;
CREATE PIPELINE p13 AS SELECT a.ts, t.vibartion, a.cod FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts AND t.humidty > 3;
CREATE PIPELINE p14 AS SELECT * FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts;
CREATE PIPELINE p15 AS SELECT t.ts, a.code FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts;
CREATE PIPELINE p16 AS SELECT a.device, tumble(t.ts, INTERVAL '1 minute') AS w, count(*) AS n FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts GROUP BY a.device, w;
CREATE PIPELINE p17 AS SELECT a.ts FROM alarms a LEFT JOIN telemetry t ON a.device = t.device AND t.ts = a.ts AND t.status > 3 + 'x' AND count(*) > 1 AND random() > 0.5;
CREATE PIPELINE p18 AS SELECT a.ts FROM alarms a LEFT JOIN telemetry t ON a.device = t.device AND t.ts = a.ts AND t.temperature;
CREATE PIPELINE p19 AS SELECT a.ts, word FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts JOIN codes c ON a.code = c.code AND t.status = c.status;
CREATE PIPELINE p20 AS SELECT a.ts, word FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts JOIN codes c ON a.code = c.code AND status = c.status;
CREATE PIPELINE p21 AS SELECT a.ts FROM alarms a JOIN hot h ON a.device = h.device AND h.ts = a.ts;
CREATE PIPELINE p22 AS SELECT telemetry.ts FROM telemetry JOIN telemetry ON telemetry.device = telemetry.device;
CREATE PIPELINE p23 AS SELECT a.ts FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts WHERE a.code = 1 AND t.temperature AND upper(t.vibration, 1) = 'x';
CREATE PIPELINE p24 AS SELECT tumble(a.ts, INTERVAL '1 minute') AS w, max(t.ts) AS last FROM alarms a JOIN telemetry t ON a.device = t.device AND t.ts = a.ts GROUP BY t.device, w;
CREATE PIPELINE hot AS SELECT device, ts, temperature FROM telemetry WHERE temperature > 60;"##,
        ),
        (
            "rollups",
            r##"CREATE PIPELINE a_1h AS SELECT device, ts FROM telemetry;
CREATE PIPELINE a WITH (rollup = '1 minute, 1 hour') AS SELECT device, tumble(ts, rollup) AS w, count(*) AS n FROM telemetry GROUP BY device, w;
CREATE PIPELINE b WITH (rollup = '1 minute, 60 s') AS SELECT device, tumble(ts, rollup) AS w, count(*) AS n FROM telemetry GROUP BY device, w;
CREATE PIPELINE c WITH (rollup = '1 minute, 1 month') AS SELECT device, tumble(ts, rollup) AS w, count(*) AS n FROM telemetry GROUP BY device, w;
CREATE PIPELINE d WITH (rollup = '1 minute') AS SELECT device, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n FROM telemetry GROUP BY device, w;
CREATE PIPELINE e AS SELECT device, tumble(ts, rollup) AS w, count(*) AS n FROM telemetry GROUP BY device, w;
CREATE PIPELINE f WITH (rollup = '1 minute, 1 hour') AS SELECT device, tumble(ts, rollup) AS w, avg(temprature) AS n FROM telemetry GROUP BY device, w;
CREATE PIPELINE g WITH (rollup = INTERVAL '1 minute') AS SELECT device, tumble(ts, rollup) AS w, count(*) AS n FROM telemetry GROUP BY device, w;"##,
        ),
        (
            "two_windows",
            r##"CREATE PIPELINE p AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS a, tumble(ts, INTERVAL '1 hour') AS b, count(*) AS n
FROM telemetry GROUP BY device, a, b;
CREATE PIPELINE q AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS a, tumble(ts, INTERVAL '1 hour') AS b, count(*) AS n
FROM telemetry GROUP BY device, a;"##,
        ),
        (
            "order_and_limit",
            r##"CREATE PIPELINE p AS SELECT device, ts FROM telemetry ORDER BY ts LIMIT 10;
CREATE PIPELINE q AS SELECT DISTINCT device, ts FROM telemetry OFFSET 5;"##,
        ),
        (
            "several_sources",
            r##"CREATE PIPELINE p AS SELECT t.ts FROM telemetry t JOIN telemetry u ON t.device = u.device;
CREATE PIPELINE q AS SELECT ts FROM telemetry, telemetry;
CREATE PIPELINE r AS SELECT ts FROM telemetry UNION ALL SELECT ts FROM telemetry;
CREATE PIPELINE s AS SELECT ts FROM (SELECT * FROM telemetry);
CREATE PIPELINE t AS WITH x AS (SELECT 1) SELECT ts FROM telemetry;"##,
        ),
        (
            "subquery",
            r##"CREATE PIPELINE p AS SELECT device, ts FROM telemetry
WHERE temperature > (SELECT avg(temperature) FROM telemetry);"##,
        ),
        (
            "pipelines_that_read_pipelines",
            r##"CREATE PIPELINE minutes AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE hours AS SELECT device, tumble(ts, INTERVAL '1 hour') AS hour_start, sum(n) AS n FROM minutes GROUP BY device, hour_start;
CREATE PIPELINE days AS SELECT device, sum(n) AS n, max(temperature) AS t FROM hourss GROUP BY device;
CREATE PIPELINE weeks AS SELECT device, n FROM minutes WHERE now() > window_start;
CREATE PIPELINE odd AS SELECT tumble(n, INTERVAL '1 hour') AS h, count(*) AS c FROM minutes GROUP BY h;
CREATE PIPELINE rolled WITH (rollup = '1 minute, 1 hour') AS SELECT device, tumble(ts, rollup) AS w, count(*) AS n FROM telemetry GROUP BY device, w;
CREATE PIPELINE of_rolled AS SELECT * FROM rolled;
CREATE PIPELINE of_hours AS SELECT w, device, n FROM rolled_1h;
CREATE PIPELINE a AS SELECT * FROM b;
CREATE PIPELINE b AS SELECT * FROM c;
CREATE PIPELINE c AS SELECT * FROM a;
CREATE PIPELINE own AS SELECT * FROM own;"##,
        ),
        (
            "volatile",
            r##"CREATE PIPELINE p AS SELECT device, ts, random() AS r, uuid() AS u, current_date AS d FROM telemetry;
CREATE PIPELINE q AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, now() AS n FROM telemetry GROUP BY device, window_start;"##,
        ),
        (
            "order_dependent",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start,
  nth_value(temperature, 2 ORDER BY ts) AS x FROM telemetry GROUP BY device, window_start;"##,
        ),
        (
            "window_functions",
            r##"CREATE PIPELINE p AS SELECT device, ts, lag(temperature) OVER (ORDER BY ts) AS b, row_number() AS r FROM telemetry;"##,
        ),
        (
            "grouping_sets",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n FROM telemetry GROUP BY ROLLUP (device, w);
CREATE PIPELINE q AS SELECT device, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n FROM telemetry GROUP BY ALL;"##,
        ),
        (
            "type_errors",
            r##"CREATE PIPELINE p AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start,
       avg(status) AS a, sqrt(status) AS b, temperature + status AS c,
       approx_percentile_cont(temperature, 'x') AS d, approx_percentile_cont(temperature, 95) AS e
FROM telemetry
WHERE temperature
GROUP BY device, window_start
HAVING max(status) + 1;"##,
        ),
        (
            "wrong_number_of_arguments",
            r##"CREATE PIPELINE p AS SELECT device, ts, sqrt(temperature, 2) AS a, abs() AS b FROM telemetry;"##,
        ),
        (
            "not_grouped",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, status, avg(temperature) AS t FROM telemetry GROUP BY device, window_start;
CREATE PIPELINE q AS SELECT *, count(*) AS n FROM telemetry GROUP BY device, tumble(ts, INTERVAL '1 minute');"##,
        ),
        (
            "aggregate_in_where",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, avg(max(temperature)) AS t FROM telemetry WHERE avg(temperature) > 3 GROUP BY device, window_start;"##,
        ),
        (
            "result_column_in_where",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, temperature * 2 AS twice FROM telemetry WHERE twice > 3 GROUP BY device, window_start, twice;"##,
        ),
        (
            "unnamed_output",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, avg(temperature), count(*), max(humidity) AS "maxHum", min(humidity) AS date FROM telemetry GROUP BY device, window_start;"##,
        ),
        (
            "output_twice",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, avg(temperature) AS t, max(temperature) AS t FROM telemetry GROUP BY device, window_start;"##,
        ),
        (
            "output_lacks_time",
            r##"CREATE PIPELINE p AS SELECT device, temperature FROM telemetry;
CREATE PIPELINE q AS SELECT count(*) AS n FROM telemetry GROUP BY device, tumble(ts, INTERVAL '1 minute');"##,
        ),
        ("output_types", r##"CREATE PIPELINE p AS SELECT ts, NULL AS x, INTERVAL '1 hour' AS y FROM telemetry;"##),
        ("always_false", r##"CREATE PIPELINE p AS SELECT device, ts FROM telemetry WHERE 1 = 2;"##),
        (
            "options",
            r##"CREATE PIPELINE p WITH (latenes = INTERVAL '1 minute', retain = '90 days', partition = 'week', partition = 'day') AS SELECT device, ts FROM telemetry;
CREATE STREAM s (x DOUBLE OPTIONS (uni = 'Cel', scale = 40)) WITH (version = '1', lateness = INTERVAL '-1 second', retain = INTERVAL '1 year', schema = 'a');"##,
        ),
        (
            "compact",
            r##"CREATE PIPELINE p WITH (compact = '1 day', retain = INTERVAL '9 days') AS SELECT device, ts FROM telemetry;
CREATE PIPELINE q WITH (retain = INTERVAL '1 hour', compact = INTERVAL '1 hour') AS SELECT device, ts FROM telemetry;
CREATE PIPELINE r WITH (compct = INTERVAL '1 hour') AS SELECT device, ts FROM telemetry;
CREATE PIPELINE s WITH (compact = INTERVAL '-1 hour') AS SELECT device, ts FROM telemetry;"##,
        ),
        (
            "bad_names",
            r##"CREATE STREAM _s (x DOUBLE);
CREATE STREAM "Weather" ("Wind Speed" DOUBLE, "°" DOUBLE);
CREATE PIPELINE weather AS SELECT ts FROM telemetry;
CREATE STREAM weather (y DOUBLE);"##,
        ),
        (
            "reserved_and_repeated_columns",
            r##"CREATE STREAM s (device TEXT, hour BIGINT, x DOUBLE, x TEXT, y DOUBLE NOT NULL DEFAULT (3), z DOUBLE PRIMARY KEY);"##,
        ),
        (
            "ids",
            r##"CREATE STREAM s (a DOUBLE OPTIONS (id = 1), b DOUBLE, c DOUBLE OPTIONS (id = 1), d TEXT OPTIONS (id = 0), e TEXT OPTIONS (id = 4, scale = -1));
CREATE STREAM u (a DOUBLE) WITH (schema = 1);
CREATE STREAM v (a DOUBLE) WITH (schema = 7);
CREATE STREAM w (a DOUBLE) WITH (schema = 7);"##,
        ),
        (
            "types",
            r##"CREATE STREAM s (a DUBLE, b TIMESTAMP, c DECIMAL(10, 2), d TEXT[], e MAP(TEXT, TEXT), f, g DOUBLE);"##,
        ),
        ("types_2", r##"CREATE STREAM s (a DUBLE, b TIMESTAMP, c DECIMAL(10, 2), d TEXT[], e UUID, g DOUBLE);"##),
        (
            "column_slips",
            r##"CREATE STREAM s (a DOUBLE OPTION (id = 1), b DOUBLE);
CREATE STREAM t (a DOUBLE b DOUBLE);
CREATE STREAM u (a DOUBLE OPTIONS (unit = "Cel"));
CREATE STREAM v (a DOUBLE"##,
        ),
        (
            "group_position",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, count(*) AS n FROM telemetry GROUP BY 1, 2, 7;
CREATE PIPELINE q AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, count(*) AS n FROM telemetry GROUP BY 1, 2, 3;"##,
        ),
        (
            "window_end_misplaced",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, max(window_end()) AS m FROM telemetry WHERE window_end() > ts AND tumble(ts, INTERVAL '1 minute') < ts GROUP BY device, window_start;
CREATE PIPELINE q AS SELECT ts, tumble(ts, INTERVAL '1 minute') AS w, window_start FROM telemetry;"##,
        ),
        (
            "no_effect",
            r##"CREATE PIPELINE p WITH (lateness = INTERVAL '1 minute') AS SELECT device, ts FROM telemetry;"##,
        ),
        (
            "select_without_as",
            r##"CREATE PIPELINE p SELECT device, ts FROM telemetry;
CREATE PIPELINE q WIHT (retain = INTERVAL '1 day') AS SELECT ts FROM telemetry;
CREATE PIPELINE r AS SELECT 1 AS one;
CREATE PIPELINE;"##,
        ),
        (
            "clauses_out_of_order",
            r##"CREATE PIPELINE p AS SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, count(*) AS n FROM telemetry GROUP BY device, window_start WHERE humidity > 1;
CREATE PIPELINE q AS SELECT device, ts, FROM telemetry;
CREATE PIPELINE s AS SELECT device ts FROM telemetry WHERE (temperature > 1;"##,
        ),
        (
            "too_long",
            r##"CREATE PIPELINE p AS SELECT device, ts FROM telemetry WHERE x + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 > 0;
CREATE PIPELINE q AS SELECT device, ts FROM telemetry WHERE ((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1)))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))) > 0;"##,
        ),
    ] {
        said.push_str(&format!("@@@ {name}\n{}\n", super::says(sql)));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/mistakes.txt");
    if std::env::var_os("WEIR_UPDATE").is_some() {
        std::fs::write(path, &said).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap();
    for (said, expected) in said.split("@@@ ").zip(expected.split("@@@ ")) {
        assert_eq!(said, expected);
    }
    assert_eq!(said.len(), expected.len());
}
