//! A whole connection of the gateway, fed from memory, with devices that answer at once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use actors::admission::Admission;
use actors::message::{Inbound, Ingress, Outcome, Stray};
use device::entry::Reason;
use device::id::DeviceId;
use device::time::Timestamp;
use engine::gateway::{Hub, Limits, probe};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::meter::bounded;

/// Gives out the input in pieces, and takes what is written.
struct Script {
    data: Vec<u8>,
    at: usize,
    piece: usize,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let end = self.data.len().min(self.at + self.piece.min(buf.remaining()));
        buf.put_slice(&self.data[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Devices that answer at once, some with a refusal.
struct Devices {
    admission: Admission,
    decided: AtomicU64,
}

fn refused() -> Outcome {
    Outcome::Refused { reason: Reason::BadPayload, text: "no".to_owned(), kept: true }
}

impl Ingress for Devices {
    type Door = DeviceId;
    async fn open(&self, device: &DeviceId) -> DeviceId {
        device.clone()
    }
    fn push(&self, _: &DeviceId, inbound: Inbound) -> Result<(), Inbound> {
        self.decided.fetch_add(1, Ordering::Relaxed);
        let outcome = if inbound.payload.first() == Some(&b'{') { Outcome::Stored } else { refused() };
        if let Some(reply) = inbound.reply {
            reply.send(outcome);
        }
        Ok(())
    }
    fn stray(&self, stray: Stray) {
        self.decided.fetch_add(1, Ordering::Relaxed);
        if let Some(reply) = stray.reply {
            reply.send(refused());
        }
    }
    fn admission(&self) -> &Admission {
        &self.admission
    }
}

/// Any bytes as what a client sends; the first says in how large pieces.
pub fn connection(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let piece = 1 + usize::from(*first) * 7;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    // A subscription costs a page of tree, a session two kilobytes; everything else follows the input's length.
    bounded(data.len(), 256 << 10, 4096, || runtime.block_on(serve(data, piece)));
}

async fn serve(data: &[u8], piece: usize) {
    let hub = Hub::new(Limits { packet: 64 * 1024, receive_maximum: 8, subscriptions: 50, ..Limits::default() });
    let devices = Arc::new(Devices { admission: Admission::new(1 << 20), decided: AtomicU64::new(0) });
    let mut script = Script { data: data.to_vec(), at: 0, piece };
    let numbers = AtomicU64::new(1);
    let random = Arc::new(move || numbers.fetch_add(1, Ordering::Relaxed));
    probe::serve(hub.clone(), devices.clone(), Arc::new(|| Timestamp(1)), random, &mut script).await;
    let value = |name: &str| -> u64 {
        hub.metrics().snapshot().iter().filter(|(found, ..)| *found == name).map(|(.., value)| value).sum()
    };
    assert_eq!(devices.admission.used(), 0, "all credit comes back");
    let received = value("weir_mqtt_publish_received_total");
    let others = value("weir_mqtt_publish_repeated_total") + value("weir_mqtt_publish_denied_total");
    assert_eq!(received, value("weir_mqtt_publish_routed_total") + others, "counters add up");
    let decided = devices.decided.load(Ordering::Relaxed);
    assert!(
        decided <= received + value("weir_mqtt_wills_total"),
        "{decided} messages were decided, {received} received"
    );
}
