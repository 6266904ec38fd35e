//! The TAP device of an encrypted network: a port of its bridge whose other side is this daemon.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::link::Namespace;
use crate::sys;

/// Bytes of the virtio-net header before a frame.
pub(super) const VIRTIO: usize = 10;
/// The largest message: a virtio-net header and the largest frame.
pub(super) const LARGEST: usize = VIRTIO + 14 + 4 + 65_535;

/// Closing it leaves the interface, without a carrier, for the next daemon.
#[derive(Debug)]
pub(crate) struct Tap(File);

impl Tap {
    /// Makes the interface in the namespace, or takes up the one an earlier daemon left.
    pub(crate) fn open(namespace: &Namespace, name: &str) -> io::Result<Self> {
        namespace.run(|| {
            let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
            let file = file.map_err(|error| io::Error::new(error.kind(), format!("open /dev/net/tun: {error}")))?;
            let device = OwnedFd::from(file);
            sys::attach_tap(&device, name)
                .map_err(|error| io::Error::new(error.kind(), format!("make TAP interface {name}: {error}")))?;
            Ok(Self(device.into()))
        })?
    }

    /// One message; `WouldBlock` if there is none.
    pub(super) fn read(&self, message: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(message)
    }

    pub(super) fn write(&self, message: &[u8]) -> io::Result<usize> {
        (&self.0).write(message)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
