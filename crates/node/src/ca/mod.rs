//! Who belongs: the root that signs every member's certificate, the tokens that let a host ask for one, and the files a
//! member keeps.
//!
//! Node id in CN, role in OU, cluster in O, as swarmkit does it. Knows nothing of sockets.

mod certificate;
mod external;
mod files;
mod identity;
mod lock;
mod root;
mod rotation;
pub(crate) mod seal;
mod token;

pub(crate) use certificate::{Issuer, check_chain, issuer_of};
pub(crate) use external::{external_signers, one_is_reachable, sign_elsewhere};
pub(crate) use files::{CertificateFiles, write_private};
pub(crate) use identity::Identity;
#[cfg(test)]
pub(crate) use identity::Role;
pub(crate) use lock::{new_unlock_key, parse_unlock_key};
pub(crate) use root::{NodeKey, Signer, root_digest};
pub use rotation::RootRequest;
pub(crate) use rotation::{finish, next_root};
pub(crate) use token::{JoinToken, new_token, new_tokens, secret_digest};

#[cfg(test)]
mod tests;
