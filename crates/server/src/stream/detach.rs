//! Detach keys: the sequence that leaves a terminal without ending what runs in it (moby `pkg/ioutils` escape proxy).

use skep_api::ConvertError;

/// `ctrl-p,ctrl-q`.
const DEFAULT: [u8; 2] = [16, 17];

/// Watches input for the sequence. Keys that only began it are let through when the next key breaks it.
#[derive(Debug)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

/// What to do with a piece of input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) data: Vec<u8>,
    pub(crate) detach: bool,
}

impl DetachKeys {
    /// Reads `ctrl-a,b`; empty is the default.
    pub(crate) fn parse(text: &str) -> Result<Self, ConvertError> {
        if text.is_empty() {
            return Ok(Self { keys: DEFAULT.to_vec(), matched: 0 });
        }
        let keys = text.split(',').map(key).collect::<Option<Vec<u8>>>();
        match keys {
            Some(keys) => Ok(Self { keys, matched: 0 }),
            None => ConvertError::invalid(format!("Invalid detach keys ({text}) provided")),
        }
    }

    pub(crate) fn pass(&mut self, input: &[u8]) -> Passed {
        let mut data = Vec::with_capacity(input.len() + self.matched);
        for &byte in input {
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return Passed { data, detach: true };
                }
                continue;
            }
            data.extend_from_slice(&self.keys[..self.matched]);
            self.matched = usize::from(byte == self.keys[0]);
            if self.matched == 0 {
                data.push(byte);
            }
        }
        Passed { data, detach: false }
    }
}

/// moby `pkg/term` `ToBytes`.
fn key(text: &str) -> Option<u8> {
    if let [byte] = text.as_bytes() {
        return Some(*byte);
    }
    match text.strip_prefix("ctrl-")?.as_bytes() {
        [byte @ b'a'..=b'z'] => Some(byte - b'a' + 1),
        b"@" => Some(0),
        b"[" => Some(27),
        b"\\" => Some(28),
        b"]" => Some(29),
        b"^" => Some(30),
        b"_" => Some(31),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_detaches_also_across_pieces() {
        let mut keys = DetachKeys::parse("").unwrap();
        assert_eq!(keys.pass(b"ab\x10"), Passed { data: b"ab".to_vec(), detach: false });
        assert_eq!(keys.pass(b"\x11zz"), Passed { data: Vec::new(), detach: true });
    }

    #[test]
    fn a_broken_sequence_is_input() {
        let mut keys = DetachKeys::parse("").unwrap();
        assert_eq!(keys.pass(b"\x10x").data, b"\x10x");
        assert_eq!(keys.pass(b"\x10\x10").data, b"\x10");
        assert!(keys.pass(b"\x11").detach);
    }

    #[test]
    fn other_keys() {
        assert!(DetachKeys::parse("ctrl-a,d").unwrap().pass(b"\x01d").detach);
        assert!(DetachKeys::parse("ctrl-7").is_err());
    }
}
