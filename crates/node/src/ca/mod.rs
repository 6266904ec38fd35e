//! Who belongs: the root that signs every member's certificate, the tokens that let a host ask for one, and the files a
//! member keeps.
//!
//! Node id in CN, role in OU, cluster in O, as swarmkit does it. Knows nothing of sockets.

mod files;
mod identity;
mod root;
mod token;

pub(crate) use files::{CertificateFiles, write_private};
pub(crate) use identity::{Identity, Role};
pub(crate) use root::{NodeKey, Signer, root_digest};
pub(crate) use token::{JoinToken, new_tokens};

#[cfg(test)]
mod tests;
