//! The log on disk: entries, vote, committed and purged marks in one redb file, every record sealed.
//!
//! Decides what is durable and when. Writes go through one thread ([`writer`]) that puts everything waiting into one
//! commit; reads come from a short cache of the newest entries, else from the file ([`disk`]).

mod cache;
mod disk;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use disk::{Disk, Recovered};
pub(crate) use store::LogStore;
