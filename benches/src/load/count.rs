//! A subscriber that only counts: what a broker without storage delivers at most.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::options::Count;
use super::packet;

/// Counts until there are enough, or until nothing comes any more.
pub(crate) fn run(options: &Count) -> io::Result<()> {
    let mut socket = TcpStream::connect(options.addr)?;
    socket.set_nodelay(true)?;
    socket.write_all(&packet::connect("load-count"))?;
    let mut connack = [0u8; 4];
    socket.read_exact(&mut connack)?;
    socket.write_all(&packet::subscribe(1, std::slice::from_ref(&options.filter), options.qos))?;
    socket.set_read_timeout(Some(Duration::from_secs(options.idle)))?;
    let mut buffer = vec![0u8; 1 << 20];
    let (mut filled, mut messages, mut bytes) = (0usize, 0u64, 0u64);
    let (mut first, mut last) = (None, Instant::now());
    let mut acks = Vec::new();
    while messages < options.expect {
        match socket.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if first.is_some() {
                    break;
                }
                continue;
            }
            Err(e) => return Err(e),
        }
        let mut used = 0;
        while let Some((kind, body, length)) = packet::first(&buffer[used..filled]) {
            used += length;
            if kind == packet::SUBACK {
                writeln!(io::stderr(), "subscribed")?;
            } else if kind & 0xf0 == 0x30 {
                first.get_or_insert_with(Instant::now);
                messages += 1;
                bytes += body.len() as u64;
                if let Some((_, Some(id), _)) = packet::publish_parts(kind, body) {
                    let [high, low] = id.to_be_bytes();
                    acks.extend_from_slice(&[packet::PUBACK, 2, high, low]);
                }
            }
        }
        buffer.copy_within(used..filled, 0);
        filled -= used;
        last = Instant::now();
        socket.write_all(&acks)?;
        acks.clear();
    }
    let elapsed = first.map_or(0.0, |first| (last - first).as_secs_f64());
    let value = json!({"messages": messages, "bytes": bytes, "elapsed_s": elapsed, "rate": messages as f64 / elapsed.max(1e-9)});
    writeln!(io::stdout(), "{value}")
}
