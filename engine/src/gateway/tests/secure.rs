//! TLS: version 1.3, no resumption, a configuration that can be swapped, handshakes that block nobody.

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

fn certificate(name: &str) -> (ServerConfig, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (config, roots)
}

fn client_config(roots: RootCertStore, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

async fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(config.clone()).connect(ServerName::try_from("weir.test").unwrap(), stream).await
}

#[tokio::test]
async fn tls_serves_swaps_and_is_not_held_up_by_the_silent() {
    let hub = Hub::new(Limits { handshakes: 3, handshake: Duration::from_secs(2), ..Limits::default() });
    let devices = Devices::new(1 << 20);
    let (config, roots) = certificate("weir.test");
    let tls = Some((([127, 0, 0, 1], 0).into(), Arc::new(config)));
    let listen = GatewayConfig { tls, ..GatewayConfig::default() };
    let gateway = start(listen, &hub, &devices);
    let address = gateway.tls_address().unwrap();
    assert!(gateway.plain_address().is_none());

    let silent = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let old = client_config(roots.clone(), &[&rustls::version::TLS13]);
    for _ in 0..3 {
        let stream = connect(address, &old).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full), "never resumed");
        let mut client = Client::over(stream);
        client.connect_v3("c", true, 0).await;
        client.publish("devices/a/telemetry", 2, 1, "x").await;
        answer(devices.take(1).await.remove(0).1, Outcome::Stored);
        assert_eq!(client.recv().await, (0x40, vec![0, 1]));
    }
    // TLS 1.2 may shake hands, but is not served.
    let weak = client_config(roots, &[&rustls::version::TLS12]);
    if let Ok(stream) = connect(address, &weak).await {
        let mut client = Client::over(stream);
        client.throw(&client::packet(0x10, b"\0\x04MQTT\x04\x02\0\0\0\x01c")).await;
        assert!(client.closed().await.is_empty());
    }
    // Too many handshakes at once: the oldest ends, and who comes now is served.
    let third = TcpStream::connect(address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    connect(address, &old).await.unwrap();
    let [mut oldest, second] = silent;
    let mut nothing = [0; 1];
    let closed = tokio::time::timeout(Duration::from_secs(1), oldest.read(&mut nothing)).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    drop((second, third));
    let (new, roots) = certificate("weir.test");
    gateway.tls().unwrap().swap(&new);
    assert!(connect(address, &old).await.is_err(), "the old certificate is gone");
    let mut client = Client::over(connect(address, &client_config(roots, &[&rustls::version::TLS13])).await.unwrap());
    client.connect_v5("c", true, &[]).await;
    assert!(gateway.shutdown(Duration::from_secs(5)).await);
    client.closed_with(0x8b).await;
}
