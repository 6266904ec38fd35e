//! How a connection between members treats a link that loses packets.
//!
//! What is said here is little and often, and whoever hears nothing for most of a second draws conclusions. TCP as the
//! kernel sets it up waits 200 ms before it sends a lost packet again, then twice as long each time: three losses in a row
//! are 1.4 s of silence. Here it waits a tenth of a heartbeat's patience and does not double the wait of so thin a stream.

use std::time::Duration;

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use tokio::net::TcpStream;

/// Longer than the 40 ms for which a receiver may hold back an acknowledgement.
const RESEND_AFTER: Duration = Duration::from_millis(60);
/// After this long without an acknowledgement the kernel gives the connection up; a peer that is gone is not waited for.
const GIVE_UP: Duration = Duration::from_secs(8);

/// `linux/tcp.h`, since Linux 6.15; not in `libc` yet.
const TCP_RTO_MIN_US: libc::c_int = 45;
const TCP_THIN_LINEAR_TIMEOUTS: libc::c_int = 16;

#[derive(Clone, Copy, Debug)]
struct ResendAfterUs;
nix::setsockopt_impl!(ResendAfterUs, libc::IPPROTO_TCP, TCP_RTO_MIN_US, u32, nix::sys::socket::sockopt::SetStruct<u32>);

#[derive(Clone, Copy, Debug)]
struct ThinLinearTimeouts;
nix::setsockopt_impl!(
    ThinLinearTimeouts,
    libc::IPPROTO_TCP,
    TCP_THIN_LINEAR_TIMEOUTS,
    bool,
    nix::sys::socket::sockopt::SetBool
);

/// Best effort: a kernel that knows an option less is only slower on a bad link.
pub(super) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, ThinLinearTimeouts, &true);
    let _ = setsockopt(stream, ResendAfterUs, &u32::try_from(RESEND_AFTER.as_micros()).unwrap_or(u32::MAX));
    let _ = setsockopt(stream, TcpUserTimeout, &u32::try_from(GIVE_UP.as_millis()).unwrap_or(u32::MAX));
}
