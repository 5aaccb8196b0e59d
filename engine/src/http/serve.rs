//! The listener: accepts, does TLS handshakes in tasks of their own, and gives each connection's requests to the router
//! together with who is at the other side. Connections, handshakes and idle times are bounded.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::guard::Peer;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a client may take for the head of a request, the pause before it included.
const HEAD: Duration = Duration::from_secs(75);

/// How long requests under way get at a stop.
const DRAIN: Duration = Duration::from_secs(5);

/// The TLS configuration of the next handshake: it may change while the engine runs.
pub type Tls = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Serves until `stop`; requests under way are finished. `most`: connections at a time, further ones are closed at once.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Tls>,
    most: usize,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let room = Arc::new(Semaphore::new(most));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly too many open files: soon there may be fewer.
                tracing::warn!(%error, "an HTTP connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            tracing::debug!(%address, "no more HTTP connections (limits.http_connections)");
            continue;
        };
        let (router, tls, stop) = (router.clone(), tls.clone(), stop.clone());
        tasks.spawn(async move {
            let _place = place;
            connection(stream, address, router, tls, stop).await;
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn connection(stream: TcpStream, address: SocketAddr, router: Router, tls: Option<Tls>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return requests(stream, Peer { address, certificate: None, secure: false }, router, stop).await;
    };
    let handshake = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls()).accept(stream));
    let Some(done) = stop.run_until_cancelled(handshake).await else { return };
    match done {
        Ok(Ok(stream)) => {
            let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = leaf.map(|leaf| Arc::from(leaf.as_ref()));
            requests(stream, Peer { address, certificate, secure: true }, router, stop).await;
        }
        Ok(Err(error)) => tracing::debug!(%address, %error, "an HTTPS handshake failed"),
        Err(_) => tracing::debug!(%address, "an HTTPS handshake took too long"),
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: Router,
    stop: CancellationToken,
) {
    let address = peer.address;
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection.as_mut()).await.ok()
        }
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(%address, %error, "an HTTP connection ended");
    }
}
