//! What the gateway counts. Plain atomics; connections add up their own counts and hand them in once per turn.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use device::entry::Reason;

use super::outgoing::Dropped;

macro_rules! counters {
    ($($field:ident => $name:literal, $labels:literal;)*) => {
        /// Counters and gauges of one gateway.
        #[derive(Debug, Default)]
        pub struct GatewayMetrics {
            $(pub(crate) $field: AtomicU64,)*
            refused: [AtomicU64; REASONS.len()],
        }

        impl GatewayMetrics {
            /// Every value: name, labels as they stand between the braces of the text format, value.
            pub fn snapshot(&self) -> Vec<(&'static str, &'static str, u64)> {
                let mut all = vec![$(($name, $labels, self.$field.load(Relaxed)),)*];
                for ((_, labels), value) in REASONS.iter().zip(&self.refused) {
                    all.push(("weir_mqtt_publish_refused_total", labels, value.load(Relaxed)));
                }
                all
            }
        }
    };
}

counters! {
    connections => "weir_mqtt_connections", "";
    sessions => "weir_mqtt_sessions", "";
    retained => "weir_mqtt_retained_messages", "";
    queued_bytes => "weir_mqtt_queued_bytes", "";
    accepted => "weir_mqtt_connections_total", "";
    refused_limit => "weir_mqtt_connect_refused_total", "reason=\"limit\"";
    refused_handshake => "weir_mqtt_connect_refused_total", "reason=\"handshake\"";
    refused_timeout => "weir_mqtt_connect_refused_total", "reason=\"timeout\"";
    refused_protocol => "weir_mqtt_connect_refused_total", "reason=\"protocol\"";
    refused_version => "weir_mqtt_connect_refused_total", "reason=\"version\"";
    refused_identity => "weir_mqtt_connect_refused_total", "reason=\"identity\"";
    refused_busy => "weir_mqtt_connect_refused_total", "reason=\"busy\"";
    cut => "weir_mqtt_cut_total", "";
    taken_over => "weir_mqtt_taken_over_total", "";
    received_0 => "weir_mqtt_publish_received_total", "qos=\"0\"";
    received_1 => "weir_mqtt_publish_received_total", "qos=\"1\"";
    received_2 => "weir_mqtt_publish_received_total", "qos=\"2\"";
    repeated => "weir_mqtt_publish_repeated_total", "";
    acknowledged => "weir_mqtt_publish_acknowledged_total", "";
    to_device => "weir_mqtt_publish_routed_total", "to=\"device\"";
    to_nobody => "weir_mqtt_publish_routed_total", "to=\"nobody\"";
    to_live => "weir_mqtt_publish_routed_total", "to=\"live\"";
    denied => "weir_mqtt_publish_denied_total", "";
    wills => "weir_mqtt_wills_total", "";
    wills_denied => "weir_mqtt_wills_denied_total", "";
    lost_outcomes => "weir_mqtt_lost_outcomes_total", "";
    delivered => "weir_mqtt_delivered_total", "";
    dropped_full => "weir_mqtt_dropped_total", "reason=\"full\"";
    dropped_expired => "weir_mqtt_dropped_total", "reason=\"expired\"";
    dropped_large => "weir_mqtt_dropped_total", "reason=\"too_large\"";
    dropped_away => "weir_mqtt_dropped_total", "reason=\"away\"";
    dropped_bus => "weir_mqtt_dropped_total", "reason=\"bus\"";
    dropped_retained => "weir_mqtt_dropped_total", "reason=\"retained_full\"";
    slow_consumers => "weir_mqtt_slow_consumers_total", "";
    bytes_in => "weir_mqtt_bytes_total", "direction=\"in\"";
    bytes_out => "weir_mqtt_bytes_total", "direction=\"out\"";
    protocol_errors => "weir_mqtt_protocol_errors_total", "";
    keep_alive_timeouts => "weir_mqtt_keep_alive_timeouts_total", "";
    paced => "weir_mqtt_rate_limited_total", "limit=\"messages\"";
    paced_packets => "weir_mqtt_rate_limited_total", "limit=\"packets\"";
    packets => "weir_mqtt_packets_total", "";
    subscriptions_refused => "weir_mqtt_subscriptions_refused_total", "";
    stalls => "weir_mqtt_credit_stalls_total", "";
    bus_messages => "weir_mqtt_bus_messages_total", "";
    bus_restarts => "weir_mqtt_bus_restarts_total", "";
}

/// Labels of refused messages, by the reason's number.
const REASONS: [(Reason, &str); 12] = [
    (Reason::BadPayload, "reason=\"bad_payload\""),
    (Reason::BadFrame, "reason=\"bad_frame\""),
    (Reason::TooLarge, "reason=\"too_large\""),
    (Reason::Empty, "reason=\"empty\""),
    (Reason::UnknownSchema, "reason=\"unknown_schema\""),
    (Reason::SchemaMismatch, "reason=\"schema_mismatch\""),
    (Reason::Window, "reason=\"window\""),
    (Reason::BadTopic, "reason=\"bad_topic\""),
    (Reason::BadDevice, "reason=\"bad_device\""),
    (Reason::Failed, "reason=\"failed\""),
    (Reason::BadField, "reason=\"bad_field\""),
    (Reason::EpochStorm, "reason=\"epoch_storm\""),
];

impl GatewayMetrics {
    pub(crate) fn refused(&self, reason: Reason) {
        if let Some(at) = REASONS.iter().position(|(known, _)| *known == reason)
            && let Some(counter) = self.refused.get(at)
        {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// PUBLISH packets received, and what became of them: for a device, for none, live, denied, or a repetition.
    pub(crate) fn flow(&self) -> (u64, u64) {
        let sum = |counters: &[&AtomicU64]| counters.iter().map(|counter| counter.load(Relaxed)).sum();
        let routed = sum(&[&self.to_device, &self.to_nobody, &self.to_live, &self.denied, &self.repeated]);
        (sum(&[&self.received_0, &self.received_1, &self.received_2]), routed)
    }

    pub(crate) fn dropped(&self, why: Dropped, count: usize) {
        let counter = match why {
            Dropped::Full => &self.dropped_full,
            Dropped::Expired => &self.dropped_expired,
            Dropped::TooLarge => &self.dropped_large,
            Dropped::Away => &self.dropped_away,
        };
        counter.fetch_add(count as u64, Relaxed);
    }
}

/// Adds one to a counter.
pub(crate) fn up(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Takes one off a gauge.
pub(crate) fn down(counter: &AtomicU64) {
    counter.fetch_sub(1, Relaxed);
}

/// What one connection has counted since it last handed in.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) received: [u64; 3],
    /// Packets that are no messages; each filter of a SUBSCRIBE counts like one more.
    pub(crate) others: u64,
    pub(crate) acknowledged: u64,
    pub(crate) delivered: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

impl Counts {
    /// PUBLISH packets.
    pub(crate) fn messages(&self) -> u64 {
        self.received.iter().sum()
    }

    /// Packets of any kind.
    pub(crate) fn packets(&self) -> u64 {
        self.messages() + self.others
    }

    pub(crate) fn hand_in(&mut self, metrics: &GatewayMetrics) {
        let [zero, one, two] = self.received;
        for (value, counter) in [
            (zero, &metrics.received_0),
            (one, &metrics.received_1),
            (two, &metrics.received_2),
            (self.packets(), &metrics.packets),
            (self.acknowledged, &metrics.acknowledged),
            (self.delivered, &metrics.delivered),
            (self.bytes_in, &metrics.bytes_in),
            (self.bytes_out, &metrics.bytes_out),
        ] {
            if value > 0 {
                counter.fetch_add(value, Relaxed);
            }
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_arrive_in_the_snapshot() {
        let metrics = GatewayMetrics::default();
        let mut counts = Counts { received: [1, 2, 3], acknowledged: 4, ..Counts::default() };
        counts.hand_in(&metrics);
        counts.hand_in(&metrics);
        metrics.refused(Reason::Empty);
        metrics.dropped(Dropped::TooLarge, 7);
        let snapshot = metrics.snapshot();
        for expected in [
            ("weir_mqtt_publish_received_total", "qos=\"2\"", 3),
            ("weir_mqtt_publish_acknowledged_total", "", 4),
            ("weir_mqtt_publish_refused_total", "reason=\"empty\"", 1),
            ("weir_mqtt_dropped_total", "reason=\"too_large\"", 7),
        ] {
            assert!(snapshot.contains(&expected), "{expected:?}");
        }
    }
}
