//! A MQTT client that does exactly what it is told, right or wrong.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::gateway::frame::{self, put_varint};

pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

pub(super) struct Client {
    io: Box<dyn Socket>,
    buf: Vec<u8>,
    pub(super) v5: bool,
}

/// A packet: first byte and body.
pub(super) type Packet = (u8, Vec<u8>);

/// A PUBLISH taken apart.
#[derive(Debug, PartialEq)]
pub(super) struct Published {
    pub(super) first: u8,
    pub(super) topic: String,
    pub(super) id: u16,
    pub(super) properties: Vec<u8>,
    pub(super) payload: String,
}

impl Published {
    pub(super) fn qos(&self) -> u8 {
        (self.first >> 1) & 3
    }
    pub(super) fn retain(&self) -> bool {
        self.first & 1 != 0
    }
}

pub(super) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    put_varint(&mut out, body.len());
    out.extend_from_slice(body);
    out
}

pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

impl Client {
    pub(super) async fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    pub(super) fn over(io: impl Socket + 'static) -> Self {
        Self { io: Box::new(io), buf: Vec::new(), v5: false }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// Sends, whether or not the other side still listens.
    pub(super) async fn throw(&mut self, bytes: &[u8]) {
        let _ = self.io.write_all(bytes).await;
    }

    /// CONNECT. `will` is (topic, payload, flags: QoS << 3 | retain << 5, properties of the will).
    pub(super) async fn send_connect(
        &mut self,
        v5: bool,
        id: &str,
        clean: bool,
        keep_alive: u16,
        properties: &[u8],
        will: Option<(&str, &str, u8, &[u8])>,
    ) {
        self.v5 = v5;
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', if v5 { 5 } else { 4 }];
        body.push(u8::from(clean) << 1 | will.map_or(0, |w| 4 | w.2));
        body.extend_from_slice(&keep_alive.to_be_bytes());
        if v5 {
            body.push(properties.len() as u8);
            body.extend_from_slice(properties);
        }
        text(&mut body, id);
        if let Some((topic, payload, _, properties)) = will {
            if v5 {
                body.push(properties.len() as u8);
                body.extend_from_slice(properties);
            }
            text(&mut body, topic);
            text(&mut body, payload);
        }
        self.send(&packet(0x10, &body)).await;
    }

    /// Connects with MQTT 3.1.1; returns "session present".
    pub(super) async fn connect_v3(&mut self, id: &str, clean: bool, keep_alive: u16) -> bool {
        self.send_connect(false, id, clean, keep_alive, &[], None).await;
        self.connected().await.0
    }

    /// Connects with MQTT 5; returns "session present" and the CONNACK's properties.
    pub(super) async fn connect_v5(&mut self, id: &str, clean: bool, properties: &[u8]) -> (bool, Vec<u8>) {
        self.send_connect(true, id, clean, 0, properties, None).await;
        self.connected().await
    }

    pub(super) async fn connected(&mut self) -> (bool, Vec<u8>) {
        let (first, body) = self.recv().await;
        assert_eq!((first, body[1]), (0x20, 0), "CONNACK {body:?}");
        (body[0] == 1, body.get(3..).unwrap_or_default().to_vec())
    }

    pub(super) fn publish_bytes(&self, topic: &str, flags: u8, id: u16, properties: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        text(&mut body, topic);
        if flags & 6 != 0 {
            body.extend_from_slice(&id.to_be_bytes());
        }
        if self.v5 {
            body.push(properties.len() as u8);
            body.extend_from_slice(properties);
        }
        body.extend_from_slice(payload);
        packet(0x30 | flags, &body)
    }

    /// PUBLISH with these flags (DUP 8, QoS << 1, retain 1).
    pub(super) async fn publish(&mut self, topic: &str, flags: u8, id: u16, payload: &str) {
        let bytes = self.publish_bytes(topic, flags, id, &[], payload.as_bytes());
        self.send(&bytes).await;
    }

    /// SUBSCRIBE to one filter with these option bits; returns the code.
    pub(super) async fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        self.subscribe_with(filter, options, &[]).await
    }

    pub(super) async fn send_subscribe(&mut self, filter: &str, options: u8, properties: &[u8]) {
        let mut body = vec![0, 77];
        if self.v5 {
            body.push(properties.len() as u8);
            body.extend_from_slice(properties);
        }
        text(&mut body, filter);
        body.push(options);
        self.send(&packet(0x82, &body)).await;
    }

    pub(super) async fn subscribe_with(&mut self, filter: &str, options: u8, properties: &[u8]) -> u8 {
        self.send_subscribe(filter, options, properties).await;
        let (first, body) = self.recv().await;
        assert_eq!((first, &body[..2]), (0x90, &[0, 77][..]));
        *body.last().unwrap()
    }

    /// UNSUBSCRIBE; returns the codes.
    pub(super) async fn unsubscribe(&mut self, filter: &str) -> Vec<u8> {
        let mut body = vec![0, 78];
        if self.v5 {
            body.push(0);
        }
        text(&mut body, filter);
        self.send(&packet(0xa2, &body)).await;
        let (first, body) = self.recv().await;
        assert_eq!((first, &body[..2]), (0xb0, &[0, 78][..]));
        body.get(3..).unwrap_or_default().to_vec()
    }

    async fn fill(&mut self) -> bool {
        let mut chunk = vec![0; 65536];
        match self.io.read(&mut chunk).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buf.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }

    async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(found) = frame::next(&self.buf, 1 << 24).unwrap() {
                let packet: Vec<u8> = self.buf.drain(..found.len).collect();
                return Some((packet[0], packet[found.head..].to_vec()));
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next packet.
    pub(super) async fn recv(&mut self) -> Packet {
        let next = tokio::time::timeout(Duration::from_secs(5), self.next()).await;
        next.expect("a packet within five seconds").expect("a packet, not the end")
    }

    /// The next packet is a PUBLISH.
    pub(super) async fn message(&mut self) -> Published {
        let (first, body) = self.recv().await;
        assert_eq!(first >> 4, 3, "PUBLISH, not {first:x} {body:?}");
        let mut rest = &body[..];
        let topic = frame::take_text(&mut rest).unwrap().to_owned();
        let id = if first & 6 != 0 { frame::take_u16(&mut rest).unwrap() } else { 0 };
        let mut properties = Vec::new();
        if self.v5 {
            let (len, width) = frame::varint(rest).unwrap().unwrap();
            properties = rest[width..width + len as usize].to_vec();
            rest = &rest[width + len as usize..];
        }
        Published { first, topic, id, properties, payload: String::from_utf8_lossy(rest).into_owned() }
    }

    /// Nothing comes for a moment.
    pub(super) async fn silence(&mut self) {
        let next = tokio::time::timeout(Duration::from_millis(150), self.next()).await;
        assert!(next.is_err(), "silence, not {next:?}");
    }

    /// The connection is closed; returns what came before that.
    pub(super) async fn closed(&mut self) -> Vec<Packet> {
        let mut before = Vec::new();
        let all = async {
            while let Some(packet) = self.next().await {
                before.push(packet);
            }
        };
        tokio::time::timeout(Duration::from_secs(8), all).await.expect("closed within eight seconds");
        before
    }

    /// The connection is closed with this reason: DISCONNECT in MQTT 5, nothing in 3.1.1.
    pub(super) async fn closed_with(&mut self, code: u8) {
        let before = self.closed().await;
        if self.v5 {
            let (first, body) = before.last().expect("a DISCONNECT");
            assert_eq!((*first, body[0]), (0xe0, code), "{before:?}");
        } else {
            assert!(before.is_empty(), "3.1.1 servers just close: {before:?}");
        }
    }
}
