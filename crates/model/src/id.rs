//! Ids as types, so that a function cannot be handed a node where it wants a task.
//!
//! Swarm ids are 25 base-36 digits (moby `identity.NewID`); container ids are 64 hex digits. Neither can be made from thin
//! air here: the caller brings the entropy.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A string that is not an id: empty, too long, or with a character outside `[0-9a-z]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid id {0:?}: an id is 1 to 64 of the characters 0-9 and a-z")]
pub struct InvalidId(pub String);

fn check(text: &str) -> Result<(), InvalidId> {
    let fine = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    if fine { Ok(()) } else { Err(InvalidId(text.to_owned())) }
}

/// 25 base-36 digits of 128 bits of entropy, zero-padded, as Swarm writes its ids.
pub fn base36_25(mut bits: u128) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut out = [b'0'; 25];
    for slot in out.iter_mut().rev() {
        *slot = DIGITS[(bits % 36) as usize];
        bits /= 36;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// 64 hex digits of 256 bits of entropy, as Docker writes container ids.
pub fn hex_64(bits: [u128; 2]) -> String {
    format!("{:032x}{:032x}", bits[0], bits[1])
}

/// The longest id that is kept in place: all of the swarm's own are.
const SHORT: usize = 30;

/// The characters of an id. Large tables spend most of their time on comparing, copying and dropping their keys, so a short
/// one does not refer to other memory. What is short is always kept as such.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Text {
    /// The rest is zeros.
    Short {
        len: u8,
        text: [u8; SHORT],
    },
    Long(Arc<str>),
}

impl Text {
    fn as_str(&self) -> &str {
        match self {
            Self::Short { len, text } => {
                text.get(..usize::from(*len)).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
            }
            Self::Long(text) => text,
        }
    }
}

impl From<&str> for Text {
    fn from(id: &str) -> Self {
        let mut text = [0; SHORT];
        match (u8::try_from(id.len()), text.get_mut(..id.len())) {
            (Ok(len), Some(room)) => {
                room.copy_from_slice(id.as_bytes());
                Self::Short { len, text }
            }
            _ => Self::Long(Arc::from(id)),
        }
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            // No character is zero, so filled up with zeros they have the order they have as text. Two comparisons of numbers
            // that overlap by two bytes; the first nearly always decides.
            (Self::Short { text: a, .. }, Self::Short { text: b, .. }) => {
                let number = |bytes: &[u8; 16]| u128::from_be_bytes(*bytes);
                let head = a.first_chunk().map(number).cmp(&b.first_chunk().map(number));
                head.then_with(|| a.last_chunk().map(number).cmp(&b.last_chunk().map(number)))
            }
            _ => self.as_str().cmp(other.as_str()),
        }
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Text);

        impl $name {
            pub fn as_str(&self) -> &str { self.0.as_str() }
            /// The first 12 characters, as tables show an id.
            pub fn short(&self) -> &str { self.as_str().get(..12).unwrap_or(self.as_str()) }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> { check(text)?; Ok(Self(text.into())) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.as_str()) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, concat!(stringify!($name), "({})"), self.as_str()) }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_str(self.as_str()) }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// A swarm, for its whole life. O in every node certificate.
    ClusterId
    /// A host in a swarm. CN in its certificate.
    NodeId
    ServiceId
    TaskId
    NetworkId
    SecretId
    ConfigId
    /// A join token with a limited life.
    JoinTokenId
    /// One dispatcher session of one agent; a new one after every reconnect.
    SessionId
    /// A container of the engine, 64 hex digits.
    ContainerId
    /// A container's place on one network, 64 hex digits.
    EndpointId
}

macro_rules! swarm_ids {
    ($($name:ident)*) => {$(
        impl $name {
            /// Makes an id from 128 random bits.
            pub fn from_bits(bits: u128) -> Self { Self(base36_25(bits).as_str().into()) }
        }
    )*};
}
swarm_ids! { ClusterId JoinTokenId NodeId ServiceId TaskId NetworkId SecretId ConfigId SessionId }

macro_rules! hex_ids {
    ($($name:ident)*) => {$(
        impl $name {
            /// Makes an id from 256 random bits.
            pub fn from_bits(bits: [u128; 2]) -> Self { Self(hex_64(bits).as_str().into()) }
        }
    )*};
}
hex_ids! { ContainerId EndpointId }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swarm_ids_are_25_base36_digits() {
        assert_eq!(TaskId::from_bits(0).as_str(), "0000000000000000000000000");
        assert_eq!(TaskId::from_bits(u128::MAX).as_str().len(), 25);
        assert_eq!(TaskId::from_bits(35).as_str(), "000000000000000000000000z");
    }

    #[test]
    fn ids_of_any_length_compare_as_their_texts() {
        let long = "z".repeat(64);
        let ends = ["0", "00", "1", "9z", "a", "zz"];
        let heads = [0, 1, 12, 13, 14, 15, 16, 17, 24, 28, 29, 30, 31, 40];
        let texts: Vec<String> = heads.iter().flat_map(|&n| ends.map(|end| format!("{}{end}", &long[..n]))).collect();
        for a in &texts {
            let id: TaskId = a.parse().unwrap();
            assert_eq!(id.as_str(), a);
            for b in &texts {
                let other: TaskId = b.parse().unwrap();
                assert_eq!((id.cmp(&other), id == other), (a.cmp(b), a == b), "{a} {b}");
            }
        }
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for bad in ["", "ABC", "a/b", "a b", &"a".repeat(65)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
        assert_eq!("w1miys4j65ljo4zuasmvsww89".parse::<NodeId>().unwrap().short(), "w1miys4j65lj");
    }
}
