//! Wildcard subscribers, and the bus that feeds them.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wildcards_and_exact_subscriptions_get_one_copy_with_all_identifiers() {
    let bench = Bench::new();
    let mut publisher = bench.v5("p").await;
    let mut all = bench.v3("all").await;
    let mut both = bench.v5("both").await;
    let mut exact = bench.v3("exact").await;
    assert_eq!(all.subscribe("#", 0).await, 0);
    both.subscribe_with("é/temp", 0, &[11, 1]).await;
    both.subscribe_with("+/temp", 2, &[11, 2]).await;
    both.subscribe_with("é/#", 1, &[11, 3]).await;
    exact.subscribe("é/temp", 1).await;
    // A topic whose first character would end rumqttd's router if it saw it.
    let bytes = publisher.publish_bytes("é/temp", 2, 1, &[38, 0, 1, b'k', 0, 1, b'v'], b"x");
    publisher.send(&bytes).await;
    publisher.recv().await;
    let message = exact.message().await;
    assert_eq!((&*message.topic, message.qos()), ("é/temp", 1));
    let message = all.message().await;
    assert_eq!((&*message.topic, message.qos(), &*message.payload), ("é/temp", 0, "x"));
    let message = both.message().await;
    assert_eq!((message.qos(), &message.properties[..7]), (1, &[38, 0, 1, b'k', 0, 1, b'v'][..]));
    let mut ids: Vec<u8> = message.properties[7..].chunks(2).map(|c| c[1]).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
    both.silence().await;
    all.silence().await;
    publisher.publish("$SYS/x", 0, 0, "not for wildcards").await;
    all.silence().await;
    assert_eq!(bench.value("weir_mqtt_bus_restarts_total", ""), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_loses_nothing_and_keeps_the_order_under_load() {
    let bench = Bench::with(|limits| {
        limits.bus_bytes = 64 * 1024;
        limits.queue_messages = 100_000;
        limits.queue_bytes = 64 << 20;
    });
    let mut subscriber = bench.v3("s").await;
    subscriber.subscribe("load/#", 1).await;
    let mut publisher = bench.v3("p").await;
    const COUNT: u16 = 20_000;
    let publish = tokio::spawn(async move {
        for first in (1..=COUNT).step_by(100) {
            let mut bytes = Vec::new();
            for id in first..first + 100 {
                bytes.extend(publisher.publish_bytes("load/x", 2, id, &[], id.to_string().as_bytes()));
            }
            publisher.send(&bytes).await;
            for id in first..first + 100 {
                assert_eq!(publisher.recv().await.1, id.to_be_bytes());
            }
        }
    });
    for expected in 1..=COUNT {
        let message = subscriber.message().await;
        assert_eq!(message.payload, expected.to_string());
        let [high, low] = message.id.to_be_bytes();
        subscriber.send(&[0x40, 2, high, low]).await;
    }
    publish.await.unwrap();
    assert_eq!(bench.value("weir_mqtt_dropped_total", "reason=\"bus\""), 0);
    assert!(bench.value("weir_mqtt_bus_messages_total", "") >= u64::from(COUNT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_groups_share_and_telemetry_can_be_watched() {
    let bench = Bench::new();
    bench.devices.prompt.store(true, Ordering::Relaxed);
    let mut workers = [bench.v5("w1").await, bench.v5("w2").await];
    for worker in &mut workers {
        assert_eq!(worker.subscribe("$share/g/devices/+/telemetry", 1).await, 1);
    }
    let mut publisher = bench.v3("p").await;
    for id in 1..=20 {
        publisher.publish("devices/a/telemetry", 2, id, "{}").await;
        assert_eq!(publisher.recv().await, (0x40, vec![0, id as u8]));
    }
    for worker in &mut workers {
        for _ in 0..10 {
            assert_eq!(worker.message().await.topic, "devices/a/telemetry");
        }
        worker.silence().await;
    }
    let codes = workers[0].unsubscribe("$share/g/devices/+/telemetry").await;
    assert_eq!(codes, [0]);
    publisher.publish("devices/b/telemetry", 0, 0, "{}").await;
    assert_eq!(workers[1].message().await.topic, "devices/b/telemetry");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wide_filter_over_many_retained_topics_does_not_overflow_the_queue() {
    let bench = Bench::with(|limits| limits.queue_messages = 64);
    let mut publisher = bench.v3("p").await;
    const COUNT: usize = 2000;
    for n in 0..COUNT {
        publisher.publish(&format!("plants/{n}/status"), 1, 0, "on").await;
    }
    publisher.publish("plants/last/status", 1 | 2, 1, "on").await;
    publisher.recv().await;
    let mut late = bench.v3("late").await;
    late.subscribe("plants/+/status", 0).await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..=COUNT {
        let message = late.message().await;
        assert!(message.retain());
        seen.insert(message.topic);
    }
    assert_eq!(seen.len(), COUNT + 1);
    late.silence().await;
    assert_eq!(bench.value("weir_mqtt_dropped_total", "reason=\"full\""), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_router_is_replaced_and_its_messages_are_not_lost() {
    let bench = Bench::with(|limits| limits.bus_deadline = Duration::from_millis(500));
    let mut subscriber = bench.v3("s").await;
    subscriber.subscribe("t/#", 1).await;
    let mut publisher = bench.v3("p").await;
    publisher.publish("t/1", 0, 0, "before").await;
    assert_eq!(subscriber.message().await.payload, "before");
    for round in 1..=2 {
        bench.hub.bus.get().unwrap().kill_router();
        tokio::time::sleep(Duration::from_millis(50)).await;
        publisher.publish("t/2", 2, 1, "after").await;
        publisher.recv().await;
        let message = subscriber.message().await;
        assert_eq!(message.payload, "after");
        let [high, low] = message.id.to_be_bytes();
        subscriber.send(&[0x40, 2, high, low]).await;
        assert_eq!(bench.value("weir_mqtt_bus_restarts_total", ""), round);
    }
}
