//! Join tokens: `SWMTKN-1-<root digest>-<secret>`, both in base 36 as swarmkit writes them.

use sha2::{Digest, Sha256};
use skep_model::cluster::JoinTokens;
use skep_model::id::base36_25;
use skep_model::node::Role;

use crate::error::{NodeError, Result};

const PREFIX: &str = "SWMTKN";
const DIGEST_DIGITS: usize = 50;
const SECRET_DIGITS: usize = 25;

/// A token taken apart. `Debug` would show the secret, so there is none.
pub(crate) struct JoinToken {
    /// `sha256:<hex>` of the root the swarm must show.
    pub(crate) root_digest: String,
}

impl JoinToken {
    /// Form only; whether the secret is right is for a manager to say.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let [prefix, version, digest, secret] = parts[..] else { return Err(NodeError::InvalidToken) };
        let digits = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if prefix != PREFIX || version != "1" || !digits(digest, DIGEST_DIGITS) || !digits(secret, SECRET_DIGITS) {
            return Err(NodeError::InvalidToken);
        }
        let bytes = from_base36(digest).ok_or(NodeError::InvalidToken)?;
        Ok(Self { root_digest: format!("sha256:{}", super::root::hex_of(&bytes)) })
    }

    /// The role a token grants, compared in constant time with the swarm's two.
    pub(crate) fn role_granted(text: &str, tokens: &JoinTokens) -> Option<Role> {
        let same = |a: &str| aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), text.as_bytes()).is_ok();
        // Both are always compared.
        match (same(&tokens.manager), same(&tokens.worker)) {
            (true, _) => Some(Role::Manager),
            (false, true) => Some(Role::Worker),
            (false, false) => None,
        }
    }
}

/// What the swarm keeps of a token's secret part.
pub(crate) fn secret_digest(token: &str) -> String {
    let secret = token.rsplit('-').next().unwrap_or_default();
    super::root::hex_of(&Sha256::digest(secret.as_bytes()))
}

pub(crate) fn new_token(root_digest: &str) -> Result<String> {
    let hex = root_digest.strip_prefix("sha256:").unwrap_or(root_digest);
    let mut bytes = [0u8; 32];
    if hex.len() != 64 {
        return Err(NodeError::Certificate("root digest is not sha256".into()));
    }
    for (slot, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *slot = std::str::from_utf8(pair)
            .ok()
            .and_then(|p| u8::from_str_radix(p, 16).ok())
            .ok_or_else(|| NodeError::Certificate("root digest is not hex".into()))?;
    }
    Ok(format!("{PREFIX}-1-{}-{}", to_base36(&bytes), base36_25(rand::random())))
}

/// Fresh secrets for both roles.
pub(crate) fn new_tokens(root_digest: &str) -> Result<JoinTokens> {
    Ok(JoinTokens { worker: new_token(root_digest)?, manager: new_token(root_digest)? })
}

/// 256 bits as 50 digits, most significant first.
fn to_base36(bytes: &[u8; 32]) -> String {
    let mut number = *bytes;
    let mut digits = [b'0'; DIGEST_DIGITS];
    for slot in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in &mut number {
            let value = (remainder << 8) | u32::from(*byte);
            *byte = (value / 36) as u8;
            remainder = value % 36;
        }
        *slot = b"0123456789abcdefghijklmnopqrstuvwxyz"[remainder as usize];
    }
    String::from_utf8_lossy(&digits).into_owned()
}

fn from_base36(text: &str) -> Option<[u8; 32]> {
    let mut number = [0u8; 32];
    for digit in text.chars() {
        let mut carry = digit.to_digit(36)?;
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = (value & 0xff) as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return None; // larger than 256 bits
        }
    }
    Some(number)
}
