//! Descriptors under tokio's reactor.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay open and its number must not change while it is registered: an `OwnedFd` is closed
    // only by being dropped, which the `AsyncFd` that owns it does after deregistering.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
