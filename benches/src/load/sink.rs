//! A server that acknowledges publishes and forgets them: the share of generator and sockets in any measurement.
//!
//! It ends when its last client has gone.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use serde_json::json;

use super::options::Sink;
use super::packet;

const LISTENER: Token = Token(0);

/// Accepts until all clients that came have gone again, then says how many messages there were.
pub(crate) fn run(options: &Sink) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(options.addr)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut clients: HashMap<Token, (TcpStream, Vec<u8>)> = HashMap::new();
    let (mut next, mut messages) = (1usize, 0u64);
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0u8; 256 * 1024];
    while next == 1 || !clients.is_empty() {
        if let Err(e) = poll.poll(&mut events, None)
            && e.kind() != io::ErrorKind::Interrupted
        {
            return Err(e);
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut socket, _)) = listener.accept() {
                    socket.set_nodelay(true)?;
                    poll.registry().register(&mut socket, Token(next), Interest::READABLE)?;
                    clients.insert(Token(next), (socket, Vec::new()));
                    next += 1;
                }
                continue;
            }
            let Some((socket, rest)) = clients.get_mut(&event.token()) else { continue };
            if !serve(socket, rest, &mut buffer, &mut messages)? {
                clients.remove(&event.token());
            }
        }
    }
    writeln!(io::stdout(), "{}", json!({ "messages": messages }))
}

/// Reads what there is and answers it. False: the client has gone.
fn serve(socket: &mut TcpStream, rest: &mut Vec<u8>, buffer: &mut [u8], messages: &mut u64) -> io::Result<bool> {
    loop {
        let kept = rest.len();
        buffer[..kept].copy_from_slice(rest);
        rest.clear();
        let read = match socket.read(&mut buffer[kept..]) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                rest.extend_from_slice(&buffer[..kept]);
                return Ok(true);
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(e) => return Err(e),
        };
        let mut bytes = &buffer[..kept + read];
        let mut answer = Vec::new();
        while let Some((kind, body, used)) = packet::first(bytes) {
            match kind & 0xf0 {
                0x10 => answer.extend_from_slice(&[packet::CONNACK, 2, 0, 0]),
                0x30 => {
                    *messages += 1;
                    if let Some((_, Some(id), _)) = packet::publish_parts(kind, body) {
                        let [high, low] = id.to_be_bytes();
                        answer.extend_from_slice(&[packet::PUBACK, 2, high, low]);
                    }
                }
                0xc0 => answer.extend_from_slice(&[0xd0, 0]),
                _ => {}
            }
            bytes = &bytes[used..];
        }
        rest.extend_from_slice(bytes);
        let mut sent = 0;
        while sent < answer.len() {
            match socket.write(&answer[sent..]) {
                Ok(n) => sent += n,
                // Acknowledgements are small and windows bounded: the client reads them soon.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => return Ok(false),
            }
        }
    }
}
