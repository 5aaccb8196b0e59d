//! What goes to devices: nothing is acknowledged before its outcome, and in the order it came.

use device::entry::Reason;
use device::payload::PayloadFormat;

use super::*;

fn refused(reason: Reason, kept: bool) -> Outcome {
    Outcome::Refused { reason, text: "because".into(), kept }
}

#[tokio::test]
async fn no_acknowledgement_before_the_outcome_and_then_in_order() {
    let bench = Bench::new();
    for v5 in [false, true] {
        let mut client = if v5 { bench.v5("c5").await } else { bench.v3("c3").await };
        client.publish("devices/a/telemetry", 2, 1, "one").await;
        client.publish("devices/b/hello", 4, 2, "two").await;
        client.publish("devices/a/telemetry", 2, 3, "three").await;
        client.publish("devices/a/telemetry", 0, 0, "zero").await;
        let mut came = bench.devices.take(4).await;
        let order: Vec<&[u8]> = came.iter().map(|(_, m)| &m.payload[..]).collect();
        assert_eq!(order, [&b"one"[..], b"two", b"three", b"zero"]);
        assert!(came[3].1.reply.is_none(), "nobody waits for QoS 0");
        assert_eq!(came[1].1.channel, actors::message::Channel::Hello);
        assert_eq!(came[0].1.session, came[2].1.session);
        assert!(came[0].1.session <= i64::MAX as u64);
        client.silence().await;
        came.pop();
        let third = came.pop().unwrap().1;
        answer(third, Outcome::Stored);
        client.silence().await;
        for (_, message) in came {
            answer(message, Outcome::Stored);
        }
        assert_eq!(client.recv().await, (0x40, vec![0, 1]));
        assert_eq!(client.recv().await, (0x50, vec![0, 2]));
        assert_eq!(client.recv().await, (0x40, vec![0, 3]));
        // QoS 2: handed on once, however often it is sent before PUBREL.
        client.publish("devices/b/hello", 4 | 8, 2, "two").await;
        assert_eq!(client.recv().await, (0x50, vec![0, 2]));
        client.send(&[0x62, 2, 0, 2]).await;
        assert_eq!(client.recv().await, (0x70, vec![0, 2]));
        client.send(&[0x62, 2, 0, 2]).await;
        let again = client.recv().await;
        assert_eq!(again.1, if v5 { vec![0, 2, 0x92] } else { vec![0, 2] });
        assert!(bench.devices.inbox.lock().is_empty());
    }
    assert_eq!(bench.devices.admission.used(), 0, "all credit is back");
}

#[tokio::test]
async fn refusals_carry_their_reason_to_those_who_can_hear_it() {
    let bench = Bench::new();
    let mut v5 = bench.v5("five").await;
    let mut v3 = bench.v3("three").await;
    for (reason, kept, code) in [
        (Reason::BadPayload, true, 0x99),
        (Reason::SchemaMismatch, true, 0x99),
        (Reason::Window, false, 0x97),
        (Reason::EpochStorm, false, 0x97),
        (Reason::Failed, true, 0x83),
    ] {
        v5.publish("devices/a/telemetry", 2, 1, "x").await;
        v3.publish("devices/a/telemetry", 2, 1, "x").await;
        for (_, message) in bench.devices.take(2).await {
            answer(message, refused(reason, kept));
        }
        let (first, body) = v5.recv().await;
        assert_eq!((first, &body[..3]), (0x40, &[0, 1, code][..]));
        assert!(body.ends_with(b"because"));
        assert_eq!(v3.recv().await, (0x40, vec![0, 1]));
    }
    // QoS 2: a refusal ends the exchange, the packet identifier is free again.
    v5.publish("devices/a/telemetry", 4, 9, "x").await;
    answer(bench.devices.take(1).await.remove(0).1, refused(Reason::Empty, true));
    assert_eq!(&v5.recv().await.1[..3], &[0, 9, 0x99]);
    v5.publish("devices/a/telemetry", 4, 9, "x").await;
    assert_eq!(bench.devices.take(1).await.len(), 1);
    assert_eq!(bench.value("weir_mqtt_publish_refused_total", "reason=\"window\""), 2);

    // A client that does not want words gets none.
    let mut quiet = bench.open().await;
    quiet.connect_v5("quiet", true, &[23, 0]).await;
    quiet.publish("devices/a/telemetry", 2, 1, "x").await;
    answer(bench.devices.take(1).await.remove(0).1, refused(Reason::Empty, true));
    assert_eq!(quiet.recv().await, (0x40, vec![0, 1, 0x99]));
}

#[tokio::test]
async fn topics_without_a_possible_device_are_strays() {
    let bench = Bench::new();
    let mut client = bench.v5("c").await;
    for (n, (topic, sender, reason)) in [
        ("devices/é/telemetry", "é", Reason::BadDevice),
        ("devices//telemetry", "", Reason::BadDevice),
        ("devices/a", "a", Reason::BadTopic),
    ]
    .into_iter()
    .enumerate()
    {
        client.publish(topic, 2, n as u16 + 1, "x").await;
        while bench.devices.strays.lock().len() <= n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        {
            let mut strays = bench.devices.strays.lock();
            let stray = &mut strays[n];
            assert_eq!((&*stray.sender, &*stray.topic, stray.reason), (sender, topic, reason));
            let reply = stray.reply.take().unwrap();
            reply.send(Outcome::Refused { reason, text: stray.text.clone(), kept: true });
        }
        assert_eq!(&client.recv().await.1[..3], &[0, n as u8 + 1, 0x90]);
    }
}

#[tokio::test]
async fn a_sleeping_device_is_woken_and_nothing_is_lost_or_reordered() {
    let bench = Bench::new();
    let mut client = bench.v3("c").await;
    client.publish("devices/a/telemetry", 2, 1, "1").await;
    bench.devices.take(1).await;
    bench.devices.asleep.store(true, Ordering::Relaxed);
    let mut both = client.publish_bytes("devices/a/telemetry", 2, 2, &[], b"2");
    both.extend(client.publish_bytes("devices/a/telemetry", 2, 3, &[], b"3"));
    client.send(&both).await;
    let came = bench.devices.take(2).await;
    assert_eq!((&came[0].1.payload[..], &came[1].1.payload[..]), (&b"2"[..], &b"3"[..]));
    assert_eq!(bench.devices.opened.load(Ordering::Relaxed), 2, "opened once, and once again");
}

#[tokio::test]
async fn content_types_and_aliases_reach_the_device() {
    let bench = Bench::new();
    let mut client = bench.v5("c").await;
    let mut properties = vec![35, 0, 3, 3];
    client::text(&mut properties, "application/cbor");
    let bytes = client.publish_bytes("devices/a/telemetry", 2, 1, &properties, b"x");
    client.send(&bytes).await;
    let bytes = client.publish_bytes("", 2, 2, &[35, 0, 3], b"y");
    client.send(&bytes).await;
    let came = bench.devices.take(2).await;
    assert_eq!(came[0].1.format, Some(PayloadFormat::Cbor));
    assert_eq!((came[1].0.as_str(), came[1].1.format), ("a", None));
    let bytes = client.publish_bytes("", 2, 3, &[35, 0, 4], b"never set");
    client.send(&bytes).await;
    client.closed_with(0x82).await;
    let mut client = bench.v5("c").await;
    let bytes = client.publish_bytes("t", 0, 0, &[35, 0, 33], b"above the maximum");
    client.send(&bytes).await;
    client.closed_with(0x94).await;
}

#[tokio::test]
async fn without_credit_the_socket_is_not_read_and_the_client_is_not_blamed() {
    let devices = Devices::new(4096);
    let bench = Bench::devices(devices, |_| {});
    let mut client = bench.open().await;
    client.connect_v3("c", true, 1).await;
    let payload = "x".repeat(1000);
    let mut all = Vec::new();
    for id in 1..=20_000u16 {
        all.extend(client.publish_bytes("devices/a/telemetry", 2, id, &[], payload.as_bytes()));
    }
    let sent = Arc::new(AtomicBool::new(false));
    let task = {
        let sent = sent.clone();
        tokio::spawn(async move {
            client.send(&all).await;
            sent.store(true, Ordering::Relaxed);
            client
        })
    };
    // Longer than the keep alive of one second and a half: it is we who do not read.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(bench.devices.inbox.lock().len() < 100, "memory is bounded by credit");
    assert!(!sent.load(Ordering::Relaxed), "and TCP makes the sender wait");
    let mut seen = 0;
    while seen < 20_000 {
        let batch: Vec<_> = bench.devices.inbox.lock().drain(..).collect();
        seen += batch.len();
        batch.into_iter().for_each(|(_, message)| answer(message, Outcome::Stored));
        assert!(bench.devices.admission.used() <= 4096 + 1024);
        tokio::task::yield_now().await;
    }
    let mut client = task.await.unwrap();
    for id in 1..=20_000u16 {
        assert_eq!(client.recv().await, (0x40, id.to_be_bytes().to_vec()));
    }
    assert_eq!(bench.devices.admission.used(), 0);
    assert!(bench.value("weir_mqtt_credit_stalls_total", "") > 0);
}

#[tokio::test]
async fn a_dropped_reply_is_never_an_acknowledgement() {
    let bench = Bench::new();
    let mut client = bench.v5("c").await;
    client.publish("devices/a/telemetry", 2, 1, "lost").await;
    client.publish("devices/a/telemetry", 2, 2, "kept").await;
    let mut came = bench.devices.take(2).await;
    answer(came.pop().unwrap().1, Outcome::Stored);
    drop(came);
    // Its turn never comes; the client is sent away so that it repeats both on a new connection.
    client.closed_with(0x83).await;
    assert_eq!(bench.value("weir_mqtt_lost_outcomes_total", ""), 1);
}

#[tokio::test]
async fn the_receive_maximum_is_enforced_where_it_was_announced() {
    let bench = Bench::with(|limits| limits.receive_maximum = 3);
    let mut client = bench.open().await;
    let (_, properties) = client.connect_v5("five", true, &[]).await;
    assert!(properties.windows(3).any(|w| w == [33, 0, 3]), "{properties:?}");
    for id in 1..=4 {
        client.publish("devices/a/telemetry", 2, id, "x").await;
    }
    client.closed_with(0x93).await;
    assert_eq!(bench.devices.take(3).await.len(), 3);
    // 3.1.1 has no such number: the rest waits in the socket.
    let mut client = bench.v3("three").await;
    for id in 1..=5 {
        client.publish("devices/a/telemetry", 2, id, "x").await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let came = bench.devices.take(3).await;
    assert_eq!(came.len(), 3);
    came.into_iter().for_each(|(_, message)| answer(message, Outcome::Stored));
    assert_eq!(bench.devices.take(2).await.len(), 2);
}

#[tokio::test]
async fn a_qos_2_message_survives_a_reconnect_without_being_handed_on_twice() {
    let bench = Bench::new();
    let mut client = bench.open().await;
    client.connect_v3("keeper", false, 0).await;
    client.publish("devices/a/telemetry", 4, 7, "x").await;
    let message = bench.devices.take(1).await.remove(0).1;
    drop(client);
    let mut client = bench.open().await;
    assert!(client.connect_v3("keeper", false, 0).await, "the session is present");
    client.publish("devices/a/telemetry", 4 | 8, 7, "x").await;
    client.silence().await;
    answer(message, Outcome::Stored);
    assert_eq!(client.recv().await, (0x50, vec![0, 7]));
    client.send(&[0x62, 2, 0, 7]).await;
    assert_eq!(client.recv().await, (0x70, vec![0, 7]));
    assert!(bench.devices.inbox.lock().is_empty());
}

#[tokio::test]
async fn shutdown_waits_for_what_was_read() {
    let bench = Bench::new();
    let mut client = bench.v5("c").await;
    let mut idle = bench.v5("idle").await;
    client.publish("devices/a/telemetry", 2, 1, "x").await;
    let message = bench.devices.take(1).await.remove(0).1;
    let address = bench.gateway.plain_address().unwrap();
    let devices = bench.devices.clone();
    let ending = tokio::spawn(bench.gateway.shutdown(Duration::from_secs(5)));
    idle.closed_with(0x8b).await;
    client.publish("devices/a/telemetry", 2, 2, "too late").await;
    client.silence().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
    answer(message, Outcome::Stored);
    assert_eq!(client.recv().await, (0x40, vec![0, 1]));
    client.closed_with(0x8b).await;
    assert!(ending.await.unwrap());
    assert!(devices.inbox.lock().is_empty(), "what came after the end was not read");
}
