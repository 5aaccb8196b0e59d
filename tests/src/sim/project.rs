//! The pipeline projects of all worlds: every kind of aggregate that keeps a state of its own, and a pipeline that is
//! there or not, one way or another.

use std::sync::{Arc, OnceLock};

use device::time::SECOND;
use sql::{Project, SourceFile};

/// What the oracle has to know of a windowed pipeline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windowed {
    /// Its name.
    pub(super) name: &'static str,
    /// Length of its windows.
    pub(super) size: i64,
    /// How long after a window its rows may come.
    pub(super) lateness: i64,
    /// Whether rows without a temperature are left out.
    pub(super) measured: bool,
}

/// The windowed pipelines.
pub(super) const WINDOWED: [Windowed; 2] = [
    Windowed { name: "short", size: 7 * SECOND, lateness: 3 * SECOND, measured: false },
    Windowed { name: "long", size: 30 * SECOND, lateness: 0, measured: true },
];

/// Length of the windows of `minutes`, which sums up the results of `short`.
pub(super) const MINUTES: i64 = 21 * SECOND;

/// Length of the windows of `fleet`, whose groups have rows of all devices.
pub(super) const FLEET: i64 = 10 * SECOND;

/// The pipeline without windows: rows of `telemetry` above this temperature.
pub(super) const HOT: f64 = 60.0;

/// How many versions of the project there are.
pub(super) const VERSIONS: u64 = 3;

/// Which rows of `telemetry` the pipeline `extra` of a version takes: those whose number this divides. In the first
/// version there is no such pipeline.
pub(super) fn extra(version: u64) -> Option<i64> {
    [None, Some(2), Some(3)].get(version as usize).copied().flatten()
}

const AGGREGATES: &str = "count(*) AS c, sum(n) AS s, avg(temperature) AS a, min(temperature) AS low, \
    max(temperature) AS high, stddev(temperature) AS deviation, approx_percentile_cont(temperature, 0.5) AS middle, \
    count(DISTINCT status) AS d";

fn text(version: u64) -> String {
    let windowed = WINDOWED.iter().map(|w| {
        let (name, size, lateness) = (w.name, w.size / SECOND, w.lateness / SECOND);
        let filter = if w.measured { "WHERE temperature IS NOT NULL" } else { "" };
        format!(
            "CREATE PIPELINE {name} WITH (lateness = INTERVAL '{lateness} seconds') AS \
             SELECT device, tumble(ts, INTERVAL '{size} seconds') AS window_start, {AGGREGATES} \
             FROM telemetry {filter} GROUP BY device, window_start;\n"
        )
    });
    let stream = "CREATE STREAM telemetry (temperature DOUBLE OPTIONS (id = 1), n BIGINT OPTIONS (id = 2), \
                  status TEXT OPTIONS (id = 3)) WITH (version = '1.0', schema = 1, partition = 'hour');\n";
    let hot =
        format!("CREATE PIPELINE hot AS SELECT device, ts, n, temperature FROM telemetry WHERE temperature > {HOT};\n");
    let extra = extra(version).map_or(String::new(), |of| {
        format!("CREATE PIPELINE extra AS SELECT device, ts, n FROM telemetry WHERE n % {of} = 0;\n")
    });
    let minutes = format!(
        "CREATE PIPELINE minutes WITH (lateness = INTERVAL '0 seconds') AS SELECT device, \
         tumble(window_start, INTERVAL '{} seconds') AS w, sum(c) AS c FROM short GROUP BY device, w;\n",
        MINUTES / SECOND
    );
    let fleet = format!(
        "CREATE PIPELINE fleet WITH (lateness = INTERVAL '5 seconds') AS SELECT \
         tumble(ts, INTERVAL '{} seconds') AS window_start, status, count(*) AS c, sum(n) AS s FROM telemetry \
         GROUP BY window_start, status;\n",
        FLEET / SECOND
    );
    // One alert changes with the last version, one comes and goes, and all of them wait for time to pass.
    let above = if version == 2 { 40 } else { 30 };
    let warm = format!(
        "CREATE ALERT warm ON telemetry WHEN temperature > {above} FOR INTERVAL '1 second' CLEAR WHEN temperature < 25 \
         SEVERITY 'warning' WHEN temperature > {HOT} SEVERITY 'critical' WITH (keep_firing_for = INTERVAL '1 second', \
         no_data_after = INTERVAL '9 seconds', no_data = 'raise', max_gap = INTERVAL '5 seconds', \
         escalate = 'oncall@0s, lead@4s every 3s max 2');\n"
    );
    let odd = if version == 1 { "CREATE ALERT odd ON telemetry WHEN n % 2 = 1;\n" } else { "" };
    format!("{stream}{}{minutes}{fleet}{hot}{extra}{warm}{odd}", windowed.collect::<String>())
}

/// A version of the project, checked and planned once.
pub(super) fn project(version: u64) -> Arc<Project> {
    static PROJECTS: OnceLock<Vec<Arc<Project>>> = OnceLock::new();
    let checked = PROJECTS.get_or_init(|| (0..VERSIONS).map(check).collect());
    checked[version as usize].clone()
}

fn check(version: u64) -> Arc<Project> {
    let files = [SourceFile { name: "sim.sql".to_owned(), text: text(version) }];
    match sql::check(&files) {
        Ok(project) => Arc::new(project),
        Err(diagnostics) => panic!("{}", sql::render_all(&diagnostics, &files)),
    }
}

/// The version with this fingerprint.
pub(super) fn version(fingerprint: u64) -> Option<u64> {
    (0..VERSIONS).find(|version| project(*version).fingerprint() == fingerprint)
}
