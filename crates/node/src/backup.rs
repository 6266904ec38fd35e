//! A swarm's whole state in one file: made from a running manager, restored as a swarm of one.
//!
//! One line of JSON says what it is ([`Header`]), then the state follows in sealed parts. The header belongs to the seal: a
//! file that was cut, changed or put together of two does not open. The state holds the root's key and every secret, so it is
//! sealed with a passphrase or, where managers are locked, with the unlock key; without either the key is in the header, and
//! the seal only tells damage. Must not know where a state comes from or goes to.

use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use skep_model::Timestamp;
use skep_store::{Store, View};
use zeroize::Zeroizing;

use crate::ca::parse_unlock_key;
use crate::ca::seal::{PartSealer, SALT_BYTES};
use crate::error::{NodeError, Result};

const FORMAT: u32 = 1;
const PART_BYTES: usize = 256 * 1024;
/// Of AES-GCM.
const TAG_BYTES: usize = 16;
const MAX_HEADER_BYTES: usize = 4096;
/// OWASP's advice for PBKDF2-HMAC-SHA256.
const ITERATIONS: u32 = 600_000;
const MAX_ITERATIONS: u32 = 10_000_000;

/// What a backup is sealed with, as far as who asks has it.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct BackupKey {
    pub passphrase: String,
    /// `SWMKEY-1-…`
    pub unlock_key: String,
}

impl std::fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BackupKey(..)")
    }
}

#[derive(Clone, Serialize, Deserialize)]
enum SealedWith {
    /// Nothing secret: the key itself, in base64.
    Nothing(String),
    UnlockKey,
    Passphrase {
        iterations: u32,
    },
}

#[derive(Clone, Serialize, Deserialize)]
struct Header {
    skep_backup: u32,
    cluster_id: String,
    created_at: Timestamp,
    /// Of the last change in it.
    index: u64,
    sealed_with: SealedWith,
    /// Base64.
    salt: String,
}

fn bad(text: impl Into<String>) -> NodeError {
    NodeError::BadRequest(format!("cannot restore: {}", text.into()))
}

fn derived(passphrase: &str, salt: &[u8], iterations: NonZeroU32) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, passphrase.as_bytes(), &mut key);
    key
}

/// The parts of a backup of `view`, one after the other. A passphrase goes before the unlock key.
pub(crate) fn seal(
    view: &View,
    key: &BackupKey,
    now: Timestamp,
) -> Result<impl Iterator<Item = Vec<u8>> + Send + use<>> {
    let cluster = view.cluster().ok_or(NodeError::NoSwarm)?;
    let salt: [u8; SALT_BYTES] = rand::random();
    let iterations = NonZeroU32::new(ITERATIONS).unwrap_or(NonZeroU32::MAX);
    let (sealed_with, secret) = match &cluster.unlock_key {
        _ if !key.passphrase.is_empty() => {
            (SealedWith::Passphrase { iterations: ITERATIONS }, derived(&key.passphrase, &salt, iterations))
        }
        Some(unlock_key) => (SealedWith::UnlockKey, parse_unlock_key(&unlock_key.0)?),
        None => {
            let secret = Zeroizing::new(rand::random::<[u8; 32]>().to_vec());
            (SealedWith::Nothing(STANDARD.encode(secret.as_slice())), secret)
        }
    };
    let header = Header {
        skep_backup: FORMAT,
        cluster_id: cluster.id.to_string(),
        created_at: now,
        index: view.index(),
        sealed_with,
        salt: STANDARD.encode(salt),
    };
    let mut line = serde_json::to_string(&header).map_err(|e| NodeError::Internal(e.to_string()))?;
    let sealer = PartSealer::new(&secret, &line, &salt);
    line.push('\n');
    let state = view.encode().map_err(|e| NodeError::Internal(e.to_string()))?;
    let count = state.len().div_ceil(PART_BYTES).max(1);
    let parts = (0..count).map(move |number| {
        let part = &state[number * PART_BYTES..state.len().min((number + 1) * PART_BYTES)];
        let sealed = sealer.seal(number as u64, number + 1 == count, part.to_vec());
        let mut framed = u32::try_from(sealed.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        framed.extend(sealed);
        framed
    });
    Ok(std::iter::once(line.into_bytes()).chain(parts))
}

/// The state in a backup; everything about it is checked.
pub(crate) fn open(file: &[u8], key: &BackupKey) -> Result<View> {
    let end = file.iter().take(MAX_HEADER_BYTES).position(|byte| *byte == b'\n');
    let (line, mut rest) = match end {
        Some(at) => (std::str::from_utf8(&file[..at]).unwrap_or_default(), &file[at + 1..]),
        None => return Err(bad("this is not a backup of a swarm made by `skep swarm backup`")),
    };
    let header = header(line)?;
    let salt = STANDARD.decode(&header.salt).ok().and_then(|salt| <[u8; SALT_BYTES]>::try_from(salt).ok());
    let salt = salt.ok_or_else(|| bad("the backup's first line is damaged"))?;
    let (secret, whose) = secret(&header, &salt, key)?;
    let sealer = PartSealer::new(&secret, line, &salt);
    let mut state = Vec::new();
    for number in 0u64.. {
        let cut = || bad("the backup is truncated: its end is missing");
        let (length, body) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_be_bytes(*length) as usize;
        if length > PART_BYTES + TAG_BYTES {
            return Err(bad("the backup was altered or damaged"));
        }
        let (sealed, behind) = body.split_at_checked(length).ok_or_else(cut)?;
        if let Some(part) = sealer.open(number, false, sealed.to_vec()) {
            state.extend(part);
            rest = behind;
            continue;
        }
        let part = sealer.open(number, true, sealed.to_vec());
        state.extend(part.ok_or_else(|| match (number, whose) {
            (0, Some(key)) => bad(format!("the {key} is not the one it was sealed with, or the backup was altered")),
            _ => bad("the backup was altered or damaged"),
        })?);
        if !behind.is_empty() {
            return Err(bad("the backup was altered: something follows its end"));
        }
        break;
    }
    let store = Store::decode(&state).map_err(|error| bad(error.to_string()))?;
    match store.read().cluster() {
        Some(_) => Ok(store.view()),
        None => Err(bad("there is no swarm in the backup")),
    }
}

fn header(line: &str) -> Result<Header> {
    #[derive(Deserialize)]
    struct Format {
        skep_backup: u32,
    }
    let Ok(Format { skep_backup: format }) = serde_json::from_str(line) else {
        return Err(bad("this is not a backup of a swarm made by `skep swarm backup`"));
    };
    if format > FORMAT {
        return Err(bad(format!(
            "the backup has format {format}, and this version of skep reads up to {FORMAT}; use the version that made it, or a newer one"
        )));
    }
    serde_json::from_str(line).map_err(|_| bad("the backup's first line is damaged"))
}

/// The secret, and what to call it where it may be the wrong one.
fn secret(
    header: &Header,
    salt: &[u8; SALT_BYTES],
    key: &BackupKey,
) -> Result<(Zeroizing<Vec<u8>>, Option<&'static str>)> {
    match &header.sealed_with {
        SealedWith::Nothing(secret) => {
            let secret = STANDARD.decode(secret).map_err(|_| bad("the backup's first line is damaged"))?;
            Ok((Zeroizing::new(secret), None))
        }
        SealedWith::UnlockKey if key.unlock_key.is_empty() => Err(bad(
            "the backup is sealed with the unlock key its swarm had (SWMKEY-1-…); give it with --unlock-key-file",
        )),
        SealedWith::UnlockKey => Ok((parse_unlock_key(key.unlock_key.trim())?, Some("unlock key"))),
        SealedWith::Passphrase { .. } if key.passphrase.is_empty() => {
            Err(bad("the backup is sealed with a passphrase; give it with --passphrase-file"))
        }
        SealedWith::Passphrase { iterations } => {
            let iterations = NonZeroU32::new((*iterations).min(MAX_ITERATIONS));
            let iterations = iterations.ok_or_else(|| bad("the backup's first line is damaged"))?;
            Ok((derived(&key.passphrase, salt, iterations), Some("passphrase")))
        }
    }
}
