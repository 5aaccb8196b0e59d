//! Sessions: takeover, persistence, expiry, queues, wills.

use super::*;

#[tokio::test]
async fn a_second_connection_takes_over() {
    let bench = Bench::new();
    for v5 in [false, true] {
        let mut first = if v5 { bench.v5("same").await } else { bench.v3("same").await };
        first.subscribe("t", 1).await;
        let mut second = bench.open().await;
        assert!(!second.connect_v3("same", true, 0).await);
        first.closed_with(0x8e).await;
        second.publish("t", 0, 0, "x").await;
        second.silence().await;
    }
    // Many at once: one remains, nobody hangs.
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = bench.open().await;
        client.send_connect(true, "same", false, 0, &[17, 0, 0, 0, 9], None).await;
        clients.push(client);
    }
    let mut last = clients.pop().unwrap();
    for mut client in clients {
        client.closed().await;
    }
    last.connected().await;
    last.send(&[0xc0, 0]).await;
    assert_eq!(last.recv().await.0, 0xd0);
    assert_eq!(bench.value("weir_mqtt_sessions", ""), 1);
}

#[tokio::test]
async fn a_persistent_session_keeps_subscriptions_and_messages() {
    let bench = Bench::with(|limits| limits.queue_messages = 3);
    let mut publisher = bench.v3("p").await;
    let mut client = bench.open().await;
    assert!(!client.connect_v3("keeper", false, 0).await);
    client.subscribe("t", 2).await;
    publisher.publish("t", 2, 1, "in flight").await;
    assert_eq!(client.message().await.id, 1);
    drop(client);
    tokio::time::sleep(Duration::from_millis(50)).await;
    for (qos, payload) in [(0, "zero"), (1, "a"), (2, "b"), (1, "c"), (1, "d")] {
        publisher.publish("t", qos << 1, 9, payload).await;
        if qos > 0 {
            publisher.recv().await;
        }
        if qos == 2 {
            publisher.send(&[0x62, 2, 0, 9]).await;
            publisher.recv().await;
        }
    }
    let mut client = bench.open().await;
    assert!(client.connect_v3("keeper", false, 0).await);
    let again = client.message().await;
    assert_eq!((again.first & 8, again.id, &*again.payload), (8, 1, "in flight"));
    for (qos, payload) in [(2, "b"), (1, "c"), (1, "d")] {
        let message = client.message().await;
        assert_eq!((message.qos(), &*message.payload), (qos, payload), "the oldest made room");
    }
    // A clean start forgets everything.
    let mut client = bench.v3("keeper").await;
    client.silence().await;
    publisher.publish("t", 0, 0, "x").await;
    client.silence().await;
    drop(client);
    let mut client = bench.open().await;
    assert!(!client.connect_v3("keeper", false, 0).await, "the clean one left nothing");
}

#[tokio::test]
async fn the_expiry_of_a_session_is_kept_changed_and_bounded() {
    let bench = Bench::with(|limits| limits.session_expiry = Duration::from_secs(100));
    // No expiry: it ends with the connection.
    let mut client = bench.open().await;
    client.connect_v5("c", false, &[]).await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut client = bench.open().await;
    let (present, properties) = client.connect_v5("c", false, &[17, 0, 0, 0, 200]).await;
    assert!(!present);
    assert_eq!(&properties[..5], &[17, 0, 0, 0, 100], "shorter than asked for, and said so");
    drop(client);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut client = bench.open().await;
    assert!(client.connect_v5("c", false, &[17, 0, 0, 0, 1]).await.0);
    drop(client);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(bench.value("weir_mqtt_sessions", ""), 0, "its second is over");
    let mut client = bench.open().await;
    assert!(!client.connect_v5("c", false, &[17, 0, 0, 0, 50]).await.0);
    client.send(&client::packet(0xe0, &[0, 5, 17, 0, 0, 0, 0])).await;
    client.closed().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.value("weir_mqtt_sessions", ""), 0, "DISCONNECT ended it");
}

#[tokio::test]
async fn names_are_given_to_those_without_one() {
    let bench = Bench::with(|limits| limits.keep_alive = Some(30));
    let mut client = bench.open().await;
    let (_, properties) = client.connect_v5("", true, &[]).await;
    assert!(properties.windows(5).any(|w| w == b"auto-"), "{properties:?}");
    assert!(properties.windows(3).any(|w| w == [19, 0, 30]), "server keep alive {properties:?}");
    let mut other = bench.open().await;
    other.connect_v3("", true, 0).await;
    assert_eq!(bench.value("weir_mqtt_sessions", ""), 2);
}

async fn with_will(bench: &Bench, id: &str, connect: &[u8], will: &[u8]) -> Client {
    let mut client = bench.open().await;
    client.send_connect(true, id, true, 0, connect, Some(("w", "gone", 8, will))).await;
    client.connected().await;
    client
}

#[tokio::test]
async fn a_will_is_sent_when_and_only_when_it_should_be() {
    let bench = Bench::new();
    let mut watcher = bench.v5("watcher").await;
    watcher.subscribe("w", 1).await;
    // Said goodbye: no will.
    let mut client = with_will(&bench, "c", &[], &[]).await;
    client.send(&[0xe0, 0]).await;
    client.closed().await;
    watcher.silence().await;
    // Said goodbye with the will, vanished, broke the protocol, was taken over.
    let mut client = with_will(&bench, "c", &[], &[38, 0, 1, b'k', 0, 1, b'v']).await;
    client.send(&[0xe0, 1, 4]).await;
    let will = watcher.message().await;
    assert_eq!((will.qos(), &*will.payload, &will.properties[..]), (1, "gone", &[38, 0, 1, b'k', 0, 1, b'v'][..]));
    drop(with_will(&bench, "c", &[], &[]).await);
    assert_eq!(watcher.message().await.payload, "gone");
    with_will(&bench, "c", &[], &[]).await.send(&[0, 0]).await;
    assert_eq!(watcher.message().await.payload, "gone");
    let _first = with_will(&bench, "c", &[], &[]).await;
    bench.v3("c").await;
    assert_eq!(watcher.message().await.payload, "gone");
    watcher.silence().await;
    // Wills in 3.1.1, retained, on a device's topic.
    let mut client = bench.open().await;
    client.send_connect(false, "d", true, 0, &[], Some(("devices/d/status", "offline", 0x28, &[]))).await;
    client.connected().await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(100)).await;
    watcher.subscribe("devices/d/status", 1).await;
    assert!(watcher.message().await.retain());
    // A will on a device's inbound topic reaches the device.
    let mut client = bench.open().await;
    client.send_connect(false, "d", true, 0, &[], Some(("devices/d/hello", "{}", 0, &[]))).await;
    client.connected().await;
    drop(client);
    assert_eq!(bench.devices.take(1).await[0].0.as_str(), "d");
}

#[tokio::test]
async fn a_delayed_will_waits_for_the_client_to_come_back() {
    let bench = Bench::new();
    let mut watcher = bench.v5("watcher").await;
    watcher.subscribe("w", 1).await;
    let expiry = [17, 0, 0, 0, 60];
    let delay = |seconds| [24, 0, 0, 0, seconds];
    // Back in time.
    drop(with_will(&bench, "c", &expiry, &delay(1)).await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut client = bench.open().await;
    assert!(client.connect_v5("c", false, &expiry).await.0);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    watcher.silence().await;
    // Not back: sent after the delay, once.
    drop(with_will(&bench, "d", &expiry, &delay(1)).await);
    tokio::time::sleep(Duration::from_millis(700)).await;
    watcher.silence().await;
    assert_eq!(watcher.message().await.payload, "gone");
    watcher.silence().await;
    // The session ends first: then.
    drop(with_will(&bench, "e", &[17, 0, 0, 0, 1], &delay(50)).await);
    assert_eq!(watcher.message().await.payload, "gone");
    // A clean start ends the session as well.
    drop(with_will(&bench, "f", &expiry, &delay(50)).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _new = bench.v5("f").await;
    assert_eq!(watcher.message().await.payload, "gone");
}

#[tokio::test]
async fn the_number_of_sessions_is_bounded() {
    let bench = Bench::with(|limits| limits.sessions = 1);
    let mut client = bench.open().await;
    client.connect_v5("one", false, &[17, 0, 0, 0, 60]).await;
    drop(client);
    let mut other = bench.open().await;
    other.send_connect(true, "two", true, 0, &[], None).await;
    assert_eq!(other.closed().await[0].1[1], 0x97);
    let mut client = bench.open().await;
    assert!(client.connect_v5("one", false, &[]).await.0);
}
