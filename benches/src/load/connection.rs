//! One MQTT connection without blocking: a buffer to be sent, and packets found in what arrives.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Source as _;
use mio::{Interest, Poll, Token};

use super::packet;

/// How many connections are opened before their CONNACKs are awaited: below the listen backlog of small brokers.
const CONNECT_BATCH: usize = 64;

/// Bytes gathered for one write.
pub(crate) const WRITE_SIZE: usize = 64 * 1024;

/// One connection to the broker under test.
pub(crate) struct Connection {
    socket: mio::net::TcpStream,
    /// What is still to be sent is appended here.
    pub(crate) out: Vec<u8>,
    sent: usize,
    rest: Vec<u8>,
    writable: bool,
    /// Bytes written to the socket.
    pub(crate) written: u64,
}

/// Opens connections with the client ids `{prefix}{i}`, subscribing each to what `filters` says for it.
pub(crate) fn open_all(
    addr: SocketAddr,
    prefix: &str,
    range: impl Iterator<Item = u32>,
    filters: impl Fn(u32) -> Vec<String>,
    poll: &Poll,
) -> io::Result<Vec<Connection>> {
    let numbers: Vec<u32> = range.collect();
    let mut all = Vec::with_capacity(numbers.len());
    for batch in numbers.chunks(CONNECT_BATCH) {
        let mut opened = Vec::with_capacity(batch.len());
        for number in batch {
            let mut socket = std::net::TcpStream::connect(addr)?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(Duration::from_secs(30)))?;
            socket.write_all(&packet::connect(&format!("{prefix}{number}")))?;
            opened.push((*number, socket));
        }
        for (number, mut socket) in opened {
            let mut connack = [0u8; 4];
            socket.read_exact(&mut connack)?;
            if connack[0] != packet::CONNACK || connack[3] != 0 {
                return Err(io::Error::other(format!("connection {number} was refused: {connack:?}")));
            }
            let filters = filters(number);
            for (at, some) in filters.chunks(100).enumerate() {
                socket.write_all(&packet::subscribe(at as u16 + 1, some, 0))?;
                await_suback(&mut socket)?;
            }
            socket.set_nonblocking(true)?;
            let mut socket = mio::net::TcpStream::from_std(socket);
            socket.register(poll.registry(), Token(all.len()), Interest::READABLE | Interest::WRITABLE)?;
            all.push(Connection { socket, out: Vec::new(), sent: 0, rest: Vec::new(), writable: true, written: 0 });
        }
    }
    Ok(all)
}

/// Waits for a SUBACK that grants everything. Nothing else is expected on a connection that just subscribed.
fn await_suback(socket: &mut std::net::TcpStream) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut one = [0u8; 1];
    loop {
        socket.read_exact(&mut one)?;
        bytes.push(one[0]);
        if let Some((kind, body, _)) = packet::first(&bytes) {
            if kind != packet::SUBACK || body.iter().skip(2).any(|code| *code >= 0x80) {
                return Err(io::Error::other(format!("a subscription was refused: {bytes:?}")));
            }
            return Ok(());
        }
    }
}

impl Connection {
    /// Whether the socket took all it was given so far.
    pub(crate) fn can_write(&self) -> bool {
        self.writable
    }

    /// The socket can take more again.
    pub(crate) fn set_writable(&mut self) {
        self.writable = true;
    }

    /// Bytes that wait to be sent.
    pub(crate) fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Writes what there is, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.writable && self.sent < self.out.len() {
            match self.socket.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.sent += n;
                    self.written += n as u64;
                    // Edge-triggered: after a short write the next edge comes when there is room again.
                    self.writable = self.sent == self.out.len();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        Ok(())
    }

    /// Reads all there is and hands each whole packet to `each`. `scratch` is shared by all connections of a
    /// thread: ten thousand buffers would cost more memory than the server under test.
    pub(crate) fn read(&mut self, scratch: &mut [u8], mut each: impl FnMut(u8, &[u8])) -> io::Result<()> {
        loop {
            let kept = self.rest.len();
            if kept * 2 > scratch.len() {
                return Err(io::Error::other("a packet is larger than the buffer"));
            }
            scratch[..kept].copy_from_slice(&self.rest);
            self.rest.clear();
            let read = match self.socket.read(&mut scratch[kept..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.rest.extend_from_slice(&scratch[..kept]);
                    return Ok(());
                }
                Err(e) => return Err(e),
            };
            let full = kept + read == scratch.len();
            let mut bytes = &scratch[..kept + read];
            while let Some((kind, body, used)) = packet::first(bytes) {
                each(kind, body);
                bytes = &bytes[used..];
            }
            self.rest.extend_from_slice(bytes);
            if read > 0 && !full {
                // A short read has emptied the socket; the next edge comes with the next bytes.
                return Ok(());
            }
        }
    }

    /// Says goodbye, as far as that goes without waiting.
    pub(crate) fn close(mut self) {
        // The run is over; a server that is gone already needs no goodbye.
        let _ = self.socket.write(&packet::DISCONNECT);
    }
}
