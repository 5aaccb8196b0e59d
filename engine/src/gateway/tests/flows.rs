//! Publish and subscribe between clients: exact topics, qualities of service, retained messages, properties.

use super::*;
use client::Published;

fn plain(message: &Published) -> (&str, u8, bool, &str) {
    (&message.topic, message.qos(), message.retain(), &message.payload)
}

#[tokio::test]
async fn the_lower_quality_of_service_counts() {
    let bench = Bench::new();
    for v5 in [false, true] {
        let mut publisher = if v5 { bench.v5("p5").await } else { bench.v3("p3").await };
        let mut subscriber = if v5 { bench.v5("s5").await } else { bench.v3("s3").await };
        for granted in 0..=2u8 {
            assert_eq!(subscriber.subscribe("t", granted).await, granted);
            for sent in 0..=2u8 {
                publisher.publish("t", sent << 1, 9, "x").await;
                match sent {
                    1 => assert_eq!(publisher.recv().await, (0x40, vec![0, 9])),
                    2 => {
                        assert_eq!(publisher.recv().await, (0x50, vec![0, 9]));
                        publisher.send(&[0x62, 2, 0, 9]).await;
                        assert_eq!(publisher.recv().await, (0x70, vec![0, 9]));
                    }
                    _ => {}
                }
                let message = subscriber.message().await;
                assert_eq!(plain(&message), ("t", sent.min(granted), false, "x"));
                let [high, low] = message.id.to_be_bytes();
                match message.qos() {
                    1 => subscriber.send(&[0x40, 2, high, low]).await,
                    2 => {
                        subscriber.send(&[0x50, 2, high, low]).await;
                        assert_eq!(subscriber.recv().await, (0x62, vec![high, low]));
                        subscriber.send(&[0x70, 2, high, low]).await;
                    }
                    _ => assert_eq!(message.id, 0),
                }
            }
        }
        assert_eq!(subscriber.unsubscribe("t").await, if v5 { vec![0] } else { vec![] });
        assert_eq!(subscriber.unsubscribe("t").await, if v5 { vec![0x11] } else { vec![] });
        publisher.publish("t", 0, 0, "x").await;
        subscriber.silence().await;
    }
}

#[tokio::test]
async fn the_subscribers_receive_maximum_and_packet_size_are_respected() {
    let bench = Bench::new();
    let mut publisher = bench.v3("p").await;
    let mut subscriber = bench.open().await;
    subscriber.connect_v5("s", true, &[33, 0, 2, 39, 0, 0, 0, 40]).await;
    subscriber.subscribe("t", 1).await;
    for payload in ["1", "2", "3", &"big".repeat(20), "4"] {
        publisher.publish("t", 2, 1, payload).await;
        publisher.recv().await;
    }
    assert_eq!(subscriber.message().await.payload, "1");
    let second = subscriber.message().await;
    assert_eq!(second.payload, "2");
    subscriber.silence().await;
    subscriber.send(&[0x40, 2, 0, second.id as u8]).await;
    assert_eq!(subscriber.message().await.payload, "3");
    subscriber.silence().await;
    subscriber.send(&[0x40, 2, 0, 1]).await;
    assert_eq!(subscriber.message().await.payload, "4", "the big one was left out");
    assert_eq!(bench.value("weir_mqtt_dropped_total", "reason=\"too_large\""), 1);
}

#[tokio::test]
async fn properties_travel_and_expiry_counts_down() {
    let bench = Bench::new();
    let mut publisher = bench.v5("p").await;
    let mut v3 = bench.v3("s3").await;
    let mut v5 = bench.v5("s5").await;
    v3.subscribe("t", 1).await;
    v5.subscribe_with("t", 1, &[11, 0xac, 2]).await;
    let kept = [1, 1, 3, 0, 1, b'j', 8, 0, 1, b'r', 9, 0, 1, 7, 38, 0, 1, b'k', 0, 1, b'v', 38, 0, 1, b'k', 0, 1, b'w'];
    let mut all = vec![2, 0, 0, 0, 60, 35, 0, 1];
    all.extend_from_slice(&kept);
    let bytes = publisher.publish_bytes("t", 0, 0, &all, b"x");
    publisher.send(&bytes).await;
    let mut expected = vec![2, 0, 0, 0, 60];
    expected.extend_from_slice(&kept);
    expected.extend_from_slice(&[11, 0xac, 2]);
    assert_eq!(v5.message().await.properties, expected);
    assert_eq!(plain(&v3.message().await), ("t", 0, false, "x"));

    // A message that expires while its receiver is away.
    let mut away = bench.open().await;
    away.connect_v5("away", true, &[17, 0, 0, 0, 60]).await;
    away.subscribe("e", 1).await;
    drop(away);
    tokio::time::sleep(Duration::from_millis(50)).await;
    for (seconds, payload) in [(1, "short"), (9, "long")] {
        let bytes = publisher.publish_bytes("e", 2, 1, &[2, 0, 0, 0, seconds], payload.as_bytes());
        publisher.send(&bytes).await;
        publisher.recv().await;
    }
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let mut away = bench.open().await;
    assert!(away.connect_v5("away", false, &[17, 0, 0, 0, 60]).await.0);
    let message = away.message().await;
    assert_eq!((message.payload.as_str(), &message.properties[..4]), ("long", &[2, 0, 0, 0][..]));
    assert!((6..=7).contains(&message.properties[4]), "{:?}", message.properties);
    assert_eq!(bench.value("weir_mqtt_dropped_total", "reason=\"expired\""), 1);
}

#[tokio::test]
async fn topics_become_aliases_for_clients_that_want_them() {
    let bench = Bench::new();
    let mut publisher = bench.v3("p").await;
    let mut subscriber = bench.open().await;
    subscriber.connect_v5("s", true, &[34, 0, 1]).await;
    subscriber.subscribe("a", 0).await;
    subscriber.subscribe("b", 0).await;
    for topic in ["a", "a", "b", "a"] {
        publisher.publish(topic, 0, 0, topic).await;
    }
    for (topic, properties) in [("a", &[35, 0, 1][..]), ("", &[35, 0, 1][..]), ("b", &[][..]), ("", &[35, 0, 1][..])] {
        let message = subscriber.message().await;
        assert_eq!((&*message.topic, &message.properties[..]), (topic, properties));
    }
}

#[tokio::test]
async fn retained_messages_follow_the_subscriptions_options() {
    let bench = Bench::new();
    let mut publisher = bench.v5("p").await;
    let mut early = bench.v5("early").await;
    early.subscribe("devices/a/status", 1).await;
    early.subscribe("other", 1 | 8).await;
    publisher.publish("devices/a/status", 1 | 2, 1, "on").await;
    publisher.publish("other", 1 | 2, 2, "kept").await;
    assert_eq!(plain(&early.message().await), ("devices/a/status", 1, false, "on"));
    assert_eq!(plain(&early.message().await), ("other", 1, true, "kept"), "retain as published");

    let mut late = bench.v5("late").await;
    late.subscribe("devices/a/status", 0).await;
    assert_eq!(plain(&late.message().await), ("devices/a/status", 0, true, "on"));
    late.subscribe("devices/a/status", 0).await;
    assert_eq!(plain(&late.message().await), ("devices/a/status", 0, true, "on"), "and again");
    late.subscribe("devices/a/status", 0x10).await;
    late.silence().await;
    late.subscribe("other", 0x10).await;
    assert_eq!(late.message().await.payload, "kept", "new: sent");
    late.unsubscribe("other").await;
    late.subscribe("other", 0x20).await;
    late.silence().await;
    late.subscribe("$share/g/other", 0).await;
    late.silence().await;

    publisher.publish("other", 0, 0, "").await;
    assert_eq!(late.message().await.payload, "", "an empty message without the flag clears nothing");
    late.message().await;
    late.subscribe("other", 0).await;
    assert_eq!(late.message().await.payload, "kept");
    publisher.publish("other", 1, 0, "").await;
    late.message().await;
    late.message().await;
    late.subscribe("other", 0).await;
    late.silence().await;
    // Telemetry is a record, not a state: it is never retained. The status is one, and the device heard of it, too.
    publisher.publish("devices/a/telemetry", 1, 0, "{}").await;
    bench.devices.take(2).await;
    late.subscribe("devices/a/telemetry", 0).await;
    late.silence().await;
}

#[tokio::test]
async fn a_full_retained_store_says_so() {
    let bench = Bench::with(|limits| limits.retained_messages = 1);
    let mut client = bench.v5("c").await;
    client.publish("a", 1 | 2, 1, "x").await;
    assert_eq!(client.recv().await, (0x40, vec![0, 1]));
    client.publish("b", 1 | 2, 2, "x").await;
    assert_eq!(&client.recv().await.1[..3], &[0, 2, 0x97]);
}

#[tokio::test]
async fn no_local_and_bad_filters() {
    let bench = Bench::new();
    let mut client = bench.v5("c").await;
    assert_eq!(client.subscribe("t", 4 | 1).await, 1);
    client.publish("t", 0, 0, "mine").await;
    client.silence().await;
    client.subscribe("t", 1).await;
    client.publish("t", 0, 0, "mine").await;
    assert_eq!(client.message().await.payload, "mine");
    for (bad, code) in [("", 0x81), ("a/#/b", 0x81), ("x+y", 0x81), ("#a", 0x81), ("$share/g", 0x81), ("$share", 0x82)]
    {
        let mut v5 = bench.v5("bad").await;
        v5.send_subscribe(bad, 0, &[]).await;
        v5.closed_with(code).await;
    }
    let mut old = bench.v3("o").await;
    assert_eq!(old.subscribe("$share/g", 0).await, 0x80, "shared subscriptions are not of 3.1.1");
    old.send_subscribe("a/#/b", 0, &[]).await;
    old.closed_with(0).await;
    assert_eq!(client.subscribe(&"a/".repeat(64), 0).await, 0x8f, "right, but deeper than we go");
    // No local on a shared subscription is a protocol error.
    let mut body = vec![0, 1, 0];
    client::text(&mut body, "$share/g/t");
    body.push(4);
    client.send(&client::packet(0x82, &body)).await;
    client.closed_with(0x82).await;
}

#[tokio::test]
async fn subscriptions_are_bounded_and_server_topics_closed() {
    let bench = Bench::with(|limits| limits.subscriptions = 2);
    let mut client = bench.v5("c").await;
    assert_eq!(client.subscribe("a", 0).await, 0);
    assert_eq!(client.subscribe("b", 0).await, 0);
    assert_eq!(client.subscribe("c", 0).await, 0x97);
    assert_eq!(client.subscribe("a", 1).await, 1, "an old one may change");
    client.unsubscribe("a").await;
    assert_eq!(client.subscribe("c", 0).await, 0);
    client.publish("$SYS/x", 2, 1, "x").await;
    assert_eq!(&client.recv().await.1[..3], &[0, 1, 0x87]);
}

#[tokio::test]
async fn the_engine_reaches_a_devices_own_topics() {
    let bench = Bench::new();
    let downlink = bench.gateway.downlink();
    let device = DeviceId::new("a").unwrap();
    let mut client = bench.v3("a").await;
    client.subscribe("devices/a/ack", 0).await;
    client.subscribe("devices/a/commands", 1).await;
    downlink.publish(&device, "ack", "ack".into(), 0);
    downlink.publish(&device, "commands", "go".into(), 1);
    downlink.publish(&device, "errors", "nobody listens".into(), 0);
    downlink.publish(&DeviceId::new("b").unwrap(), "ack", "not for a".into(), 0);
    assert_eq!(plain(&client.message().await), ("devices/a/ack", 0, false, "ack"));
    assert_eq!(plain(&client.message().await), ("devices/a/commands", 1, false, "go"));
    client.silence().await;
}

#[tokio::test]
async fn a_slow_reader_harms_itself_only() {
    let bench = Bench::with(|limits| {
        limits.queue_messages = 50;
        limits.write_stall = Duration::from_secs(1);
    });
    let mut publisher = bench.v3("p").await;
    let mut quick = bench.v3("quick").await;
    let mut zero = bench.v5("zero").await;
    let mut one = bench.v5("one").await;
    quick.subscribe("t", 0).await;
    zero.subscribe("t", 0).await;
    one.subscribe("t", 1).await;
    let payload = "x".repeat(50_000);
    for n in 0..400 {
        publisher.publish("t", 2, 1, &payload).await;
        assert_eq!(publisher.recv().await, (0x40, vec![0, 1]), "{n}");
        assert_eq!(quick.message().await.payload.len(), payload.len());
    }
    // Neither has read a byte: QoS 0 was dropped, QoS 1 was told to leave (or its socket stalled first).
    assert!(bench.value("weir_mqtt_dropped_total", "reason=\"full\"") > 0);
    assert_eq!(bench.value("weir_mqtt_slow_consumers_total", ""), 1);
    let before = one.closed().await;
    assert!(before.len() < 400);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(zero.closed().await.len() < 400, "who takes nothing for too long is gone");
}
