//! A network that lies: a TCP proxy between agents and engine that cuts, delays, stands still, and keeps one side of a
//! connection open after the other is gone.
//!
//! It passes on bytes or nothing: what TCP promises while a connection lives is kept, so every fault is one that a
//! real network has.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Both sides are closed.
    Both,
    /// The agent's side is closed, the engine's stays open and silent.
    Agents(Duration),
    /// The engine's side is closed, the agents' stays open and silent.
    Engine(Duration),
}

/// The state of the network.
#[derive(Debug, Clone, Copy)]
struct Weather {
    delay: Duration,
    still: bool,
    /// Number of the last cut, and whom it meets: so many of a thousand connections.
    cut: (u64, u32, Cut),
}

/// The running proxy. Ends with the runtime.
pub(super) struct Proxy {
    address: SocketAddr,
    weather: Arc<watch::Sender<Weather>>,
    connections: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on a free loopback port and passes on to `engine`.
    pub(super) async fn start(engine: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let fair = Weather { delay: Duration::ZERO, still: false, cut: (0, 0, Cut::Both) };
        let weather = Arc::new(watch::Sender::new(fair));
        let connections = Arc::new(AtomicU64::new(0));
        let (sky, count) = (weather.clone(), connections.clone());
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    // Out of descriptors for a moment.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let number = count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(connection(client, engine, sky.subscribe(), seed ^ number.wrapping_mul(0x9e37_79b9)));
            }
        });
        Ok(Self { address, weather, connections })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections taken so far.
    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Cuts so many of a thousand connections.
    pub(super) fn cut(&self, share: u32, how: Cut) {
        self.weather.send_modify(|weather| weather.cut = (weather.cut.0 + 1, share, how));
    }

    /// From now on every piece of data is this late.
    pub(super) fn delay(&self, each: Duration) {
        self.weather.send_modify(|weather| weather.delay = each);
    }

    /// Stands still, or goes on.
    pub(super) fn still(&self, still: bool) {
        self.weather.send_modify(|weather| weather.still = still);
    }
}

async fn connection(mut client: TcpStream, engine: SocketAddr, sky: watch::Receiver<Weather>, seed: u64) {
    // No engine: the agent sees its connection closed, as with a port that nobody listens on.
    let Ok(mut engine) = TcpStream::connect(engine).await else { return };
    let _ = (client.set_nodelay(true), engine.set_nodelay(true));
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_engine, to_engine) = engine.split();
        let both = async {
            // One direction may end before the other: a goodbye is still answered.
            tokio::join!(carry(from_client, to_engine, sky.clone()), carry(from_engine, to_client, sky.clone()))
        };
        tokio::select! {
            _ = both => return,
            cut = struck(sky.clone(), seed) => cut,
        }
    };
    match cut {
        Cut::Both => {}
        Cut::Agents(lasts) => {
            drop(client);
            tokio::time::sleep(lasts).await;
        }
        Cut::Engine(lasts) => {
            drop(engine);
            tokio::time::sleep(lasts).await;
        }
    }
}

/// Waits for a cut that meets this connection.
async fn struck(mut sky: watch::Receiver<Weather>, seed: u64) -> Cut {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut last = sky.borrow().cut.0;
    loop {
        let seen = match sky.wait_for(|weather| weather.cut.0 != last).await {
            Ok(weather) => weather.cut,
            // The proxy is going away.
            Err(_) => return Cut::Both,
        };
        last = seen.0;
        if random.random_range(0..1000) < seen.1 {
            return seen.2;
        }
    }
}

/// One direction.
async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut sky: watch::Receiver<Weather>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(count) if count > 0 => count,
            _ => break,
        };
        let delay = match sky.wait_for(|weather| !weather.still).await {
            Ok(weather) => weather.delay,
            Err(_) => break,
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn says(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn it_passes_on_cuts_waits_and_holds() {
        let proxy = Proxy::start(echo().await, 1).await.unwrap();
        let mut one = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(says(&mut one, b"hello").await.unwrap(), b"hello");
        proxy.delay(Duration::from_millis(100));
        let begun = tokio::time::Instant::now();
        assert_eq!(says(&mut one, b"late").await.unwrap(), b"late");
        assert!(begun.elapsed() >= Duration::from_millis(200), "both ways");
        proxy.delay(Duration::ZERO);
        proxy.still(true);
        let wait = tokio::time::timeout(Duration::from_millis(200), says(&mut one, b"still")).await;
        assert!(wait.is_err());
        proxy.still(false);
        let mut rest = [0; 5];
        one.read_exact(&mut rest).await.unwrap();
        proxy.cut(0, Cut::Both);
        assert_eq!(says(&mut one, b"missed").await.unwrap(), b"missed");
        proxy.cut(1000, Cut::Engine(Duration::from_millis(300)));
        let mut byte = [0; 1];
        let silent = tokio::time::timeout(Duration::from_millis(150), one.read(&mut byte)).await;
        assert!(silent.is_err(), "open and silent");
        let end = tokio::time::timeout(Duration::from_secs(5), one.read(&mut byte)).await.unwrap();
        assert!(!matches!(end, Ok(1..)), "then closed");
        let mut two = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(says(&mut two, b"again").await.unwrap(), b"again");
        proxy.cut(1000, Cut::Agents(Duration::from_millis(100)));
        assert!(!matches!(two.read(&mut byte).await, Ok(1..)));
        assert_eq!(proxy.connections(), 2);
    }
}
