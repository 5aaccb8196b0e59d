//! MQTT packets of both versions, read one after the other.

use engine::gateway::probe::packet;

use super::meter::bounded;

/// As the gateway's own.
const LIMIT: usize = 256 * 1024;

/// Any bytes as a stream of packets, of either version.
pub fn packets(data: &[u8]) {
    for v5 in [false, true] {
        stream(v5, data);
    }
}

fn stream(v5: bool, data: &[u8]) {
    let mut rest = data;
    loop {
        // What the packets say is written down as text, up to four characters for a byte.
        let found = bounded(rest.len(), 8192, 256, || packet(v5, rest, LIMIT));
        assert_eq!(packet(v5, rest, LIMIT), found, "a packet reads the same twice");
        let found = match found {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(code) => {
                assert!(code >= 0x80, "an error has a code that says so");
                return;
            }
        };
        assert!(found.len >= 2 && found.len <= rest.len());
        let (whole, tail) = rest.split_at(found.len);
        assert_eq!(packet(v5, whole, LIMIT).as_ref(), Ok(&Some(found.clone())), "what follows does not matter");
        assert!(matches!(packet(v5, &whole[..found.len - 1], LIMIT), Ok(None)), "a part is waited for");
        if let Some(again) = &found.again {
            let back = packet(v5, again, again.len()).expect("our PUBLISH is one").expect("and complete");
            assert_eq!((back.len, &back.text), (again.len(), &found.text), "a PUBLISH goes on as it came");
        }
        rest = tail;
    }
}
