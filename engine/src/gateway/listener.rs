//! Sockets: accepting, TLS handshakes, and the bounds on both.
//!
//! Nothing that one peer does or omits is awaited in the accept loop: a handshake has a task of its own, with a
//! deadline, and there is a bound on how many run at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use actors::message::Ingress;
use rustls::ProtocolVersion;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Shared;
use super::crowd::{Addresses, Turns};
use super::identity::Identity;
use super::metrics::{down, up};
use super::opening;
use super::tls::TlsSettings;

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: u32 = 4096;

/// What the listeners of one gateway have in common.
pub(crate) struct Door<I> {
    pub(crate) shared: Arc<Shared<I>>,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) handshakes: Arc<Turns>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// Binds a listener. Its sockets inherit TCP keep alive, which finds peers that are gone for good even when they
/// asked for no MQTT keep alive.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How connections of a listener begin.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// Without TLS.
    Plain,
    /// With TLS, and usually a certificate.
    Secure(TlsSettings),
    /// With a certificate that may have expired.
    Recovery(TlsSettings),
}

/// Accepts until told to stop.
pub(crate) async fn accept<I: Ingress>(door: Arc<Door<I>>, listener: TcpListener, way: Way) {
    loop {
        let accepted = tokio::select! {
            () = door.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a peer that was gone already: others must not suffer for long.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let metrics = door.shared.hub.metrics.clone();
        up(&metrics.accepted);
        let Ok(place) = door.connections.clone().try_acquire_owned() else {
            up(&metrics.refused_limit);
            continue;
        };
        let Some(counted) = door.addresses.enter(peer.ip()) else {
            up(&metrics.refused_limit);
            if let Some(guard) = &door.shared.guard {
                guard.turned_away(peer, "too many connections from this address");
            }
            continue;
        };
        // Answers are small and go out once per turn: waiting for more to send would only delay them.
        let _ = stream.set_nodelay(true);
        let serve = {
            let (door, way) = (door.clone(), way.clone());
            async move {
                up(&metrics.connections);
                match way {
                    Way::Plain => {
                        let entry = (Ok(Some(Identity::anonymous())), 0);
                        opening::serve(door.shared.clone(), stream, entry, Some(peer)).await;
                    }
                    Way::Secure(tls) => handshake(&door, stream, peer, (&tls, false)).await,
                    Way::Recovery(tls) => handshake(&door, stream, peer, (&tls, true)).await,
                }
                down(&metrics.connections);
                drop((place, counted));
            }
        };
        door.tasks.spawn(serve);
    }
}

async fn handshake<I: Ingress>(
    door: &Arc<Door<I>>,
    stream: TcpStream,
    peer: SocketAddr,
    (tls, recovery): (&TlsSettings, bool),
) {
    let metrics = &door.shared.hub.metrics;
    let turn = door.handshakes.take();
    let limit = door.shared.hub.limits.handshake;
    let accepted = tokio::time::timeout(limit, Box::pin(tls.acceptor().accept(stream)));
    let accepted = turn.over.run_until_cancelled(accepted);
    let stream = match door.shared.leaving.run_until_cancelled(accepted).await.flatten() {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(error))) => {
            if let Some(guard) = &door.shared.guard {
                guard.turned_away(peer, &error.to_string());
            }
            return up(&metrics.refused_handshake);
        }
        Some(Err(_)) => return up(&metrics.refused_timeout),
        None => return up(&metrics.refused_limit),
    };
    drop(turn);
    if stream.get_ref().1.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return up(&metrics.refused_handshake);
    }
    let guard = door.shared.guard.as_ref();
    // In this order: what changes while it is asked is seen by the connection.
    let revision = guard.map_or(0, |guard| guard.revision());
    let entry = match (guard, stream.get_ref().1.peer_certificates()) {
        (Some(guard), Some([certificate, ..])) if recovery => guard.identify_expired(certificate).map(Some),
        (Some(guard), Some(chain)) => guard.identify_chain(chain).map(Some),
        (Some(guard), None) if !recovery && guard.takes_tokens() => Ok(None),
        // The verifier has let in somebody without a certificate because nobody has to have one.
        _ => Ok(Some(Identity::anonymous())),
    };
    if let (Some(guard), Err(why)) = (guard, &entry) {
        guard.turned_away(peer, why.code());
    }
    opening::serve(door.shared.clone(), stream, (entry, revision), Some(peer)).await;
}
