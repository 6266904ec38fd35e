//! Sealing bytes under a secret: AES-256-GCM with a key derived for this one purpose and salt (HKDF-SHA256), so that no nonce
//! is ever used twice. What was sealed for one purpose does not open as another.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};

pub(crate) const SALT_BYTES: usize = 32;

/// A key for the numbered parts of one sealed thing. Parts that are left out, moved or changed do not open, and neither does
/// a last part that is none.
pub(crate) struct PartSealer(LessSafeKey);

impl PartSealer {
    pub(crate) fn new(secret: &[u8], purpose: &str, salt: &[u8; SALT_BYTES]) -> Self {
        let derived = Salt::new(HKDF_SHA256, salt).extract(secret);
        let info = [purpose.as_bytes()];
        let key =
            derived.expand(&info, &AES_256_GCM).map(UnboundKey::from).expect("32 bytes can be derived of SHA-256");
        Self(LessSafeKey::new(key))
    }

    fn nonce(number: u64, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&number.to_be_bytes());
        nonce[11] = u8::from(last);
        Nonce::assume_unique_for_key(nonce)
    }

    pub(crate) fn seal(&self, number: u64, last: bool, mut part: Vec<u8>) -> Vec<u8> {
        self.0
            .seal_in_place_append_tag(Self::nonce(number, last), Aad::empty(), &mut part)
            .expect("a part is far shorter than AES-GCM's 64 GiB");
        part
    }

    /// `None` if it is not what was sealed.
    pub(crate) fn open(&self, number: u64, last: bool, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let length = self.0.open_in_place(Self::nonce(number, last), Aad::empty(), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

/// Seals a small thing whole, under a salt of its own in front.
pub(crate) fn seal(secret: &[u8], purpose: &str, plain: &[u8]) -> Vec<u8> {
    let salt: [u8; SALT_BYTES] = rand::random();
    let mut out = salt.to_vec();
    out.extend(PartSealer::new(secret, purpose, &salt).seal(0, true, plain.to_vec()));
    out
}

/// `None` for another secret, another purpose, or changed bytes; which of them cannot be told.
pub(crate) fn open(secret: &[u8], purpose: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (salt, body) = sealed.split_first_chunk::<SALT_BYTES>()?;
    PartSealer::new(secret, purpose, salt).open(0, true, body.to_vec())
}
