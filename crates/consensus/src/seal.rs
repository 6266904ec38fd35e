//! Authenticated encryption of records at rest: XAES-256-GCM (C2SP), AES-256-GCM under a key derived from the first half of
//! a random 192-bit nonce.
//!
//! Why not plain AES-256-GCM: its 96-bit nonce is safe for 2^32 random draws, and a counter is not safe at all when a file
//! is restored from a backup. 192 random bits need no state and no limit worth naming.
//!
//! A sealed record is `version || nonce || ciphertext || tag`; what it is and where it belongs (its [`Place`]) is
//! authenticated but not stored, so a record moved to another place does not open.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{cmac, rand};

const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// How much longer a record gets by being sealed.
pub(crate) const OVERHEAD: usize = 1 + NONCE_BYTES + TAG_BYTES;

/// The record does not open here: another key, another place, or changed bytes. Which of them cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAuthentic;

/// Where a record belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) table: &'a str,
    pub(crate) term: u64,
    pub(crate) index: u64,
    /// Number of the part within the record, and whether it is the last: a cut or reordered file does not open.
    pub(crate) part: u64,
    pub(crate) last: bool,
}

impl<'a> Place<'a> {
    pub(crate) fn whole(table: &'a str, term: u64, index: u64) -> Self {
        Self { table, term, index, part: 0, last: true }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.table.len() + 34);
        for number in [self.term, self.index, self.part, u64::from(self.last)] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(self.table.as_bytes());
        bytes
    }
}

/// Seals and opens records with one storage key.
pub(crate) struct Sealer {
    derive: cmac::Key,
}

impl Sealer {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self { derive: cmac::Key::new(cmac::AES_256, key).expect("an AES-256 key is 32 bytes") }
    }

    pub(crate) fn seal(&self, place: Place<'_>, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0u8; NONCE_BYTES];
        rand::fill(&mut nonce).expect("the kernel's random source answers");
        self.seal_with(nonce, &place.bytes(), plain)
    }

    fn seal_with(&self, nonce: [u8; NONCE_BYTES], place: &[u8], plain: &[u8]) -> Vec<u8> {
        let (key, short) = self.derive(&nonce);
        let mut out = Vec::with_capacity(plain.len() + OVERHEAD);
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let head = 1 + NONCE_BYTES;
        let tag = key
            .seal_in_place_separate_tag(short, Aad::from(place), &mut out[head..])
            .expect("a record is far shorter than AES-GCM's 64 GiB");
        out.extend_from_slice(tag.as_ref());
        out
    }

    pub(crate) fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, NotAuthentic> {
        if sealed.len() < OVERHEAD || sealed[0] != VERSION {
            return Err(NotAuthentic);
        }
        let nonce: [u8; NONCE_BYTES] = sealed[1..=NONCE_BYTES].try_into().map_err(|_| NotAuthentic)?;
        let (key, short) = self.derive(&nonce);
        let mut text = sealed[1 + NONCE_BYTES..].to_vec();
        let length = key.open_in_place(short, Aad::from(place.bytes()), &mut text).map_err(|_| NotAuthentic)?.len();
        text.truncate(length);
        Ok(text)
    }

    fn derive(&self, nonce: &[u8; NONCE_BYTES]) -> (LessSafeKey, Nonce) {
        let mut key = [0u8; 32];
        for (counter, half) in [1u8, 2].into_iter().zip(key.chunks_exact_mut(16)) {
            let mut block = [0u8; 16];
            block[1] = counter;
            block[2] = b'X';
            block[4..].copy_from_slice(&nonce[..12]);
            let tag = cmac::sign(&self.derive, &block).expect("CMAC of one block cannot fail");
            half.copy_from_slice(tag.as_ref());
        }
        let short: [u8; 12] = nonce[12..].try_into().expect("24 - 12 is 12");
        let key = UnboundKey::new(&AES_256_GCM, &key).expect("an AES-256 key is 32 bytes");
        (LessSafeKey::new(key), Nonce::assume_unique_for_key(short))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the C2SP specification (XAES-256-GCM).
    #[test]
    fn agrees_with_the_specification() {
        let nonce = *b"ABCDEFGHIJKLMNOPQRSTUVWX";
        for (key, aad, wanted) in [
            (0x01, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
            (0x03, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
        ] {
            let sealed = Sealer::new(&[key; 32]).seal_with(nonce, aad.as_bytes(), b"XAES-256-GCM");
            let text: String = sealed[1 + NONCE_BYTES..].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(text, wanted);
        }
    }

    #[test]
    fn a_record_opens_only_with_its_key_in_its_place_unchanged() {
        let sealer = Sealer::new(&[7; 32]);
        let place = Place::whole("log", 3, 9);
        let sealed = sealer.seal(place, b"swarm");
        assert_eq!(sealer.open(place, &sealed).unwrap(), b"swarm");
        assert_ne!(sealed, sealer.seal(place, b"swarm"), "every seal draws its own nonce");
        for elsewhere in [
            Place { table: "meta", ..place },
            Place { term: 4, ..place },
            Place { index: 8, ..place },
            Place { part: 1, ..place },
            Place { last: false, ..place },
        ] {
            assert_eq!(sealer.open(elsewhere, &sealed), Err(NotAuthentic));
        }
        assert_eq!(Sealer::new(&[8; 32]).open(place, &sealed), Err(NotAuthentic));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(sealer.open(place, &changed), Err(NotAuthentic), "byte {at}");
        }
        assert_eq!(sealer.open(place, &sealed[..sealed.len() - 1]), Err(NotAuthentic));
        assert_eq!(sealer.open(place, b""), Err(NotAuthentic));
    }
}
