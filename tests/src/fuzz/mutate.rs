//! Mutations of kept inputs for the ordinary test: seeded, so that every run sees the same ones.
//!
//! Much weaker than a fuzzer, which is led by coverage; it keeps what the fuzzer has found from coming back.

/// A small generator of our own: the same bytes on every machine.
pub struct Noise(u64);

impl Noise {
    /// A generator that begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number of the row.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`, 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.draw() >> 11) as usize % end.max(1)
    }
}

/// Bytes that stand at borders: of integers, of CBOR and JSON, of MQTT.
const TELLING: &[u8] =
    b"\x00\x01\x17\x18\x1b\x1f\x20\x3b\x5f\x7f\x80\x9b\x9f\xa0\xbb\xbf\xf7\xf9\xfb\xff\"\\{}[]:,-.eE09/+#$;'";

/// One mutation of `input`, with pieces of `other` mixed in. Not longer than both together and 64 bytes.
pub fn mutate(input: &[u8], other: &[u8], noise: &mut Noise) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + noise.below(4) {
        let at = noise.below(bytes.len());
        let to = at + noise.below(bytes.len() + 1 - at.min(bytes.len())).min(32);
        match noise.below(8) {
            0 if !bytes.is_empty() => bytes[at] = noise.draw() as u8,
            1 if !bytes.is_empty() => bytes[at] = TELLING[noise.below(TELLING.len())],
            2 if !bytes.is_empty() => bytes[at] = bytes[at].wrapping_add([1, 255, 128][noise.below(3)]),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..to)),
            5 => {
                let piece = bytes[at..to].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => {
                let from = noise.below(other.len());
                let len = noise.below(other.len() + 1 - from.min(other.len())).min(64);
                bytes.splice(at..at, other[from..from + len].iter().copied());
            }
            _ => bytes.insert(at, TELLING[noise.below(TELLING.len())]),
        }
    }
    bytes.truncate(input.len() + other.len() + 64);
    bytes
}
