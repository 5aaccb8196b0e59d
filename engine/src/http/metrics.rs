//! `/metrics` in the Prometheus text format.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use actors::message::Ingress;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::Api;

pub(super) async fn render(State(api): State<Api>) -> impl IntoResponse {
    let mut text = String::new();
    for (name, value) in api.core.metrics.snapshot() {
        counter(&mut text, &format!("weir_{name}_total"), "", value);
    }
    for (name, labels, value) in api.gateway.snapshot() {
        sample(&mut text, name, labels, value);
    }
    for (stage, count) in api.books.mismatches() {
        counter(&mut text, "weir_counter_mismatch_total", &format!("stage=\"{}\"", stage.as_str()), count);
    }
    counter(&mut text, "weir_counter_comparisons_total", "", api.books.compared());
    let deployments = &api.deployments;
    counter(&mut text, "weir_project_versions_total", "result=\"taken\"", deployments.taken.load(Ordering::Relaxed));
    counter(
        &mut text,
        "weir_project_versions_total",
        "result=\"refused\"",
        deployments.refused.load(Ordering::Relaxed),
    );
    sample(&mut text, "weir_project_stale", "", u64::from(deployments.stale.load(Ordering::Relaxed)));
    for (table, done) in api.housekeeping.tables() {
        let label = format!("table=\"{table}\"");
        counter(&mut text, "weir_retention_partitions_total", &label, done.partitions);
        counter(&mut text, "weir_retention_files_total", &label, done.files);
        counter(&mut text, "weir_retention_bytes_total", &label, done.bytes);
        counter(&mut text, "weir_compaction_merges_total", &label, done.merges);
        counter(&mut text, "weir_compaction_files_total", &label, done.merged);
        counter(&mut text, "weir_compaction_rows_total", &label, done.merged_rows);
        counter(&mut text, "weir_files_deleted_total", &label, done.erased);
        sample(&mut text, "weir_files_to_delete", &label, done.hidden);
    }
    counter(&mut text, "weir_housekeeping_looks_total", "", api.housekeeping.looks.load(Ordering::Relaxed));
    counter(&mut text, "weir_housekeeping_failures_total", "", api.housekeeping.failures.load(Ordering::Relaxed));
    for (channel, counts) in api.core.desk.with(|desk| desk.counts()) {
        sample(&mut text, "weir_alert_messages_waiting", &format!("channel=\"{channel}\""), counts.waiting as u64);
    }
    for (channel, report) in api.told.channels() {
        let label = |result: &str| format!("channel=\"{channel}\",result=\"{result}\"");
        counter(&mut text, "weir_alert_messages_total", &label("accepted"), report.accepted);
        counter(&mut text, "weir_alert_messages_total", &label("given_up"), report.gave_up);
        counter(&mut text, "weir_alert_attempts_failed_total", &format!("channel=\"{channel}\""), report.failed);
    }
    counter(&mut text, "weir_alert_unreached_total", "", api.told.unreached_count());
    for (days, count) in api.expiring.counts() {
        sample(&mut text, "weir_certificates_expiring", &format!("within=\"{days}d\""), count);
    }
    let (acts, dropped, failures) = api.guard.audit().counters();
    counter(&mut text, "weir_audit_acts_total", "", acts);
    counter(&mut text, "weir_audit_dropped_total", "", dropped);
    counter(&mut text, "weir_audit_failures_total", "", failures);
    let admission = api.core.node.admission();
    sample(&mut text, "weir_in_flight_bytes", "", admission.used() as u64);
    sample(&mut text, "weir_in_flight_limit_bytes", "", admission.limit() as u64);
    sample(&mut text, "weir_ready", "", u64::from(api.core.healthy()));
    for (status, shard) in api.core.statuses.iter().zip(api.core.node.shards()) {
        let label = format!("shard=\"{}\"", shard.id);
        let get = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
        sample(&mut text, "weir_devices_awake", &label, shard.awake_count() as u64);
        sample(&mut text, "weir_devices_parked", &label, shard.parked_count() as u64);
        sample(&mut text, "weir_log_position", &label, shard.committer.durable().0);
        sample(&mut text, "weir_tables_position", &label, get(&status.position));
        sample(&mut text, "weir_rows_in_memory", &label, status.live.rows() as u64);
        sample(&mut text, "weir_window_groups", &label, get(&status.open_groups));
        sample(&mut text, "weir_pipeline_state_bytes", &label, get(&status.state_bytes));
        sample(&mut text, "weir_alerts_not_ok", &label, status.alerts.len() as u64);
        counter(&mut text, "weir_rows_total", &label, get(&status.rows));
        counter(&mut text, "weir_redecoded_records_total", &label, get(&status.redecoded));
        counter(&mut text, "weir_late_records_total", &label, get(&status.late));
        counter(&mut text, "weir_files_total", &label, get(&status.files));
        counter(&mut text, "weir_file_bytes_total", &label, get(&status.file_bytes));
        counter(&mut text, "weir_checkpoints_total", &label, get(&status.checkpoints));
        counter(&mut text, "weir_store_failures_total", &label, get(&status.store_failures));
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

fn counter(text: &mut String, name: &str, labels: &str, value: u64) {
    line(text, name, "counter", labels, value);
}

fn sample(text: &mut String, name: &str, labels: &str, value: u64) {
    line(text, name, if name.ends_with("_total") { "counter" } else { "gauge" }, labels, value);
}

fn line(text: &mut String, name: &str, kind: &str, labels: &str, value: u64) {
    let head = format!("# TYPE {name} {kind}\n");
    if !text.contains(&head) {
        text.push_str(&head);
    }
    let _ =
        if labels.is_empty() { writeln!(text, "{name} {value}") } else { writeln!(text, "{name}{{{labels}}} {value}") };
}
