//! Hello, hello answers, ack frames, and the topics they come on.

use device::ack::Ack;
use device::hello::{Hello, HelloAck};
use device::topic;

use super::meter::bounded;

/// Any bytes as each of them: what decodes comes back from its encoding.
pub fn wire(data: &[u8]) {
    bounded(data.len(), 8192, 256, || {
        let _ = (Hello::decode(data), HelloAck::decode(data), Ack::decode(data));
    });
    if let Ok(hello) = Hello::decode(data) {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
    if let Ok(answer) = HelloAck::decode(data) {
        assert_eq!(HelloAck::decode(&answer.encode()), Ok(answer));
    }
    if let Ok(ack) = Ack::decode(data) {
        assert_eq!(Ack::decode(&ack.encode()), Ok(ack));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(Some(found)) = topic::parse(text)
        && found.leaf != topic::Leaf::Other
    {
        assert_eq!(found.leaf.topic(&found.device), text);
    }
}
