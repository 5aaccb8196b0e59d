//! Peers that break the protocol, or send no protocol at all: they harm themselves only.

use super::*;

/// A small generator of our own: the same bytes on every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_with_its_reason() {
    let bench = Bench::with(|limits| limits.packet = 4096);
    let publish = |topic: &[u8]| {
        let mut body = vec![0, topic.len() as u8];
        body.extend_from_slice(topic);
        body.push(0);
        client::packet(0x30, &body)
    };
    for (bytes, code) in [
        (publish(b"a/+/b"), 0x90),
        (publish(b"a/#"), 0x90),
        (publish(b""), 0x90),
        (publish(b"a\0b"), 0x81),
        (publish(&[0xff, 0xfe]), 0x81),
        (vec![0x36, 5, 0, 1, b't', 0, 1], 0x81),
        (vec![0x10, 0], 0x82),
        (vec![0x20, 2, 0, 0], 0x82),
        (vec![0x40, 2, 0, 0], 0x82),
        (vec![0x90, 3, 0, 1, 0], 0x82),
        (vec![0xb0, 2, 0, 1], 0x82),
        (vec![0xd0, 0], 0x82),
        (vec![0xf0, 0], 0x82),
        (vec![0x00, 0], 0x81),
        (vec![0x80, 0], 0x81),
        (vec![0x82, 2, 0, 1], 0x81),
        (vec![0x82, 3, 0, 1, 0], 0x82),
        (vec![0xc0, 1, 0], 0x81),
        (vec![0xc1, 0], 0x81),
        (vec![0x30, 0xff, 0xff, 0xff, 0xff], 0x81),
        (vec![0x30, 0xff, 0xff, 0x7f], 0x95),
        (vec![0xe0, 6, 0, 5, 17, 0, 0, 0], 0x81),
        (vec![0xe0, 7, 0, 5, 17, 0, 0, 0, 9], 0x82),
    ] {
        let mut client = bench.v5("c").await;
        client.send(&bytes).await;
        let before = client.closed().await;
        assert_eq!(before.last().map(|(first, body)| (*first, body[0])), Some((0xe0, code)), "{bytes:02x?}");
    }
    let mut client = bench.v3("c").await;
    client.send(&[0x30, 3, 0, 1, b'#']).await;
    client.closed_with(0x90).await;
    assert!(bench.value("weir_mqtt_protocol_errors_total", "") >= 20);
}

#[tokio::test]
async fn bad_connects_are_refused_as_the_standard_says() {
    let bench = Bench::with(|limits| limits.connect = Duration::from_millis(300));
    for (body, answer) in [
        // Version 3 and 6.
        (b"\0\x06MQIsdp\x03\x02\0\0\0\x01c".to_vec(), vec![0x20, 2, 0, 1]),
        (b"\0\x04MQTT\x03\x02\0\0\0\x01c".to_vec(), vec![0x20, 2, 0, 1]),
        // No name for a persistent session.
        (b"\0\x04MQTT\x04\x00\0\0\0\0".to_vec(), vec![0x20, 2, 0, 2]),
        // Reserved flag, contradicting will flags, trailing bytes, U+0000 in the name: no answer in 3.1.1.
        (b"\0\x04MQTT\x04\x03\0\0\0\x01c".to_vec(), vec![]),
        (b"\0\x04MQTT\x04\x0a\0\0\0\x01c".to_vec(), vec![]),
        (b"\0\x04MQTT\x04\x1e\0\0\0\x01c\0\x01t\0\0".to_vec(), vec![]),
        (b"\0\x04MQTT\x04\x02\0\0\0\x01cX".to_vec(), vec![]),
        (b"\0\x04MQTT\x04\x02\0\0\0\x01\0".to_vec(), vec![]),
        (b"\0\x04MQXX\x04\x02\0\0\0\x01c".to_vec(), vec![]),
        (b"".to_vec(), vec![]),
    ] {
        let mut client = bench.open().await;
        client.send(&client::packet(0x10, &body)).await;
        let came: Vec<u8> =
            client.closed().await.into_iter().flat_map(|(first, body)| client::packet(first, &body)).collect();
        assert_eq!(came, answer, "{body:?}");
    }
    for (properties, code) in [
        (&[33u8, 0, 0][..], 0x82),
        (&[39, 0, 0, 0, 0], 0x82),
        (&[17, 0, 0, 0, 1, 17, 0, 0, 0, 1], 0x82),
        (&[21, 0, 1, b'x'], 0x8c),
        (&[11, 1], 0x82),
        (&[99], 0x81),
    ] {
        let mut client = bench.open().await;
        client.send_connect(true, "c", true, 0, properties, None).await;
        let before = client.closed().await;
        assert_eq!((before[0].0, before[0].1[1]), (0x20, code), "{properties:?}");
    }
    // Not CONNECT, nothing at all, half of one: gone, the last two after the deadline.
    let mut client = bench.open().await;
    client.send(&[0xc0, 0]).await;
    assert!(client.closed().await.is_empty());
    for start in [&[][..], &[0x10, 20, 0, 4]] {
        let mut client = bench.open().await;
        client.send(start).await;
        assert!(client.closed().await.is_empty());
    }
    assert_eq!(bench.value("weir_mqtt_connect_refused_total", "reason=\"timeout\""), 2);
    assert_eq!(bench.value("weir_mqtt_connect_refused_total", "reason=\"version\""), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_harms_nobody_else() {
    let bench = Bench::with(|limits| {
        limits.connect = Duration::from_millis(200);
        limits.packet = 4096;
    });
    bench.devices.prompt.store(true, Ordering::Relaxed);
    let mut witness = bench.v3("witness").await;
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    // Valid packets to cut and to bend.
    let mut sample = Client::over(tokio::io::duplex(1).0);
    sample.v5 = true;
    let mut seeds = vec![
        sample.publish_bytes(
            "devices/a/telemetry",
            2,
            5,
            &[2, 0, 0, 0, 9, 3, 0, 1, b'x', 38, 0, 1, b'k', 0, 1, b'v'],
            b"{}",
        ),
        sample.publish_bytes("a/b", 5, 6, &[8, 0, 1, b'r', 9, 0, 1, 7, 35, 0, 1], b"retained"),
        client::packet(0x82, b"\0\x07\x02\x0b\x05\0\x03a/#\x2d\0\x0e$share/g/+/b/c\x01"),
        client::packet(0xa2, b"\0\x08\0\0\x03a/#"),
        client::packet(0x40, b"\0\x01\x10\x00"),
        client::packet(0x50, b"\0\x01\x00\x06\x1f\0\x03abc"),
        client::packet(0x62, b"\0\x05\x92\x00"),
        client::packet(0xe0, b"\x04\x05\x11\0\0\0\x09"),
    ];
    seeds.push(client::packet(
        0x10,
        b"\0\x04MQTT\x05\xc6\0\x3c\x05\x11\0\0\0\x0a\0\x01w\x05\x18\0\0\0\x01\0\x01t\0\x01p\0\x01u\0\x01p",
    ));
    for round in 0..400u64 {
        let mut bytes = if round % 3 == 0 {
            let len = noise.next() as usize % 300;
            noise.bytes(len)
        } else {
            let mut bytes = Vec::new();
            for _ in 0..1 + noise.next() % 3 {
                bytes.extend_from_slice(&seeds[noise.next() as usize % seeds.len()]);
            }
            for _ in 0..noise.next() % 4 {
                let at = noise.next() as usize % bytes.len();
                bytes[at] = noise.next() as u8;
            }
            bytes
        };
        if round % 5 == 0 {
            bytes.truncate(noise.next() as usize % (bytes.len() + 1));
        }
        let mut client = bench.open().await;
        if round % 4 != 3 {
            client.send_connect(round % 2 == 0, "noise", true, 0, &[], None).await;
        }
        client.throw(&bytes).await;
        drop(client);
        if round % 50 == 49 {
            witness.publish("devices/w/telemetry", 2, 1, "x").await;
            assert_eq!(witness.recv().await, (0x40, vec![0, 1]));
        }
    }
    assert_eq!(witness.subscribe("w", 1).await, 1);
    witness.publish("w", 0, 0, "alive").await;
    assert_eq!(witness.message().await.payload, "alive");
    for _ in 0..500 {
        if bench.value("weir_mqtt_connections", "") == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("every task came to its end, none by a panic: {}", bench.value("weir_mqtt_connections", ""));
}

#[tokio::test]
async fn connections_are_bounded() {
    let bench = Bench::with(|limits| limits.connections = 2);
    let one = bench.v3("one").await;
    let _two = bench.v3("two").await;
    let mut three = bench.open().await;
    assert!(three.closed().await.is_empty());
    assert_eq!(bench.value("weir_mqtt_connect_refused_total", "reason=\"limit\""), 1);
    drop(one);
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.v3("four").await;
}

#[tokio::test]
async fn silence_beyond_the_keep_alive_ends_a_connection() {
    let bench = Bench::new();
    let mut client = bench.open().await;
    client.send_connect(true, "c", true, 1, &[], None).await;
    client.connected().await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(900)).await;
        client.send(&[0xc0, 0]).await;
        assert_eq!(client.recv().await, (0xd0, vec![]));
    }
    let start = std::time::Instant::now();
    client.closed_with(0x8d).await;
    assert!((1300..2500).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

/// A socket that is closed while its peer is still sending resets the connection, and the reason is lost with it.
#[tokio::test]
async fn whoever_is_sent_away_while_still_sending_hears_why() {
    let bench = Bench::with(|limits| limits.receive_maximum = 4);
    // More than both sockets hold goes on being sent after the packet that ends the connection.
    let flood = vec![0u8; 4 << 20];
    let mut client = bench.v5("sent away").await;
    client.publish("t", 0, 0, "x").await;
    client.send(&client::packet(0x10, b"a second CONNECT")).await;
    client.send(&flood).await;
    client.closed_with(0x82).await;
    // Refused at CONNECT, with more behind it.
    let mut client = bench.open().await;
    client.send_connect(true, &"x".repeat(2000), true, 0, &[], None).await;
    client.send(&flood).await;
    let before = client.closed().await;
    assert_eq!((before.len(), before[0].0, before[0].1[1]), (1, 0x20, 0x85), "{before:?}");
    // One who goes on writing for longer than a second before he looks at the answers.
    let mut client = bench.v5("too many").await;
    for id in 1..=80 {
        client.publish("devices/a/telemetry", 2 | 4, id, "{}").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.closed_with(0x81).await;
    let mut client = bench.v5("too many").await;
    for id in 1..=80 {
        client.publish("devices/a/telemetry", 4, id, "{}").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.closed_with(0x93).await;
}

#[tokio::test]
async fn filters_that_are_closed_to_everybody() {
    let bench = Bench::with(|limits| limits.no_subscribe = vec!["secret/#".into(), "devices/+/telemetry".into()]);
    let mut v5 = bench.v5("five").await;
    let mut v3 = bench.v3("three").await;
    for closed in ["secret", "secret/a", "secret/+/b", "secret/#", "devices/a/telemetry", "$share/g/secret/a"] {
        assert_eq!(v5.subscribe(closed, 1).await, 0x80, "{closed}");
        assert_eq!(v3.subscribe(closed, 1).await, 0x80, "{closed}");
    }
    for open in ["secrets", "+/a", "#", "devices/+/+", "devices/a/status"] {
        assert_eq!(v5.subscribe(open, 1).await, 1, "{open}");
    }
}

#[tokio::test]
async fn no_answer_is_larger_than_the_client_takes() {
    let bench = Bench::new();
    let size = |most: u8| [39, 0, 0, 0, most];
    // CONNACK: without what says nothing, or not at all.
    let mut client = bench.open().await;
    let (_, properties) = client.connect_v5("c", true, &size(22)).await;
    assert!(properties.len() <= 22 - 5, "{properties:?}");
    let mut client = bench.open().await;
    client.send_connect(true, "tiny", true, 0, &size(8), None).await;
    assert_eq!(client.closed().await, vec![(0x20, vec![0, 0x95, 0])]);
    let mut client = bench.open().await;
    client.send_connect(true, "tiny", true, 0, &size(4), None).await;
    assert!(client.closed().await.is_empty());
    let mut client = bench.open().await;
    client.send_connect(true, &"x".repeat(2000), true, 0, &size(8), None).await;
    assert_eq!(client.closed().await, vec![(0x20, vec![0, 0x85, 0])], "the words are left out");
    // SUBACK: refused instead.
    let mut client = bench.open().await;
    client.connect_v5("c", true, &size(22)).await;
    let mut body = vec![0, 1, 0];
    for n in 0..20 {
        client::text(&mut body, &n.to_string());
        body.push(0);
    }
    client.send(&client::packet(0x82, &body)).await;
    client.closed_with(0x95).await;
}
