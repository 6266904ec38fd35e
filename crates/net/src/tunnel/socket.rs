//! The UDP socket between the hosts: many datagrams a call, both ways.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};

use crate::link::Namespace;

/// The kernel's limit of segments in one call, on all kernels that segment UDP.
const SEGMENTS: usize = 64;
/// The largest payload of UDP.
const PAYLOAD: usize = 65_507;
const BUFFER: usize = 4 << 20;
const SENDING: Duration = Duration::from_millis(100);

pub(super) struct Socket {
    socket: UdpSocket,
    port: u16,
}

impl Socket {
    /// In the host's namespace, at the host's address on the underlay: peers know a sender by it.
    pub(super) fn open(host: &Namespace, own: Ipv4Addr, port: u16) -> io::Result<Self> {
        let socket = host.run(|| UdpSocket::bind((own, port)))?.map_err(|error| {
            io::Error::new(error.kind(), format!("take {own}:{port}/udp for encrypted networks: {error}"))
        })?;
        crate::sys::let_fragment(&socket)?;
        // An interface that sends nothing any more must not hold up who ends the sender.
        socket.set_write_timeout(Some(SENDING))?;
        // The host's limits are for what programs ask for; this is all containers' traffic.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER);
        // Without it datagrams come one by one.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self { socket, port })
    }

    /// Sends what is `size` bytes a datagram, the last one shorter. What the kernel does not take is lost, as on any wire.
    pub(super) fn send(&self, datagrams: &[u8], size: usize, to: Ipv4Addr) {
        let to = SocketAddrV4::new(to, self.port);
        let many = SEGMENTS.min(PAYLOAD / size) * size;
        for chunk in datagrams.chunks(many) {
            if chunk.len() > size && self.send_segmented(chunk, size, to).is_ok() {
                continue;
            }
            for datagram in chunk.chunks(size) {
                let _ = self.socket.send_to(datagram, to);
            }
        }
    }

    fn send_segmented(&self, datagrams: &[u8], size: usize, to: SocketAddrV4) -> io::Result<()> {
        let segment = u16::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let parts = [IoSlice::new(datagrams)];
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let to = SockaddrIn::from(to);
        sendmsg(self.socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))?;
        Ok(())
    }

    /// How many bytes came, as datagrams of which size (the last one may be shorter), and from whom. `WouldBlock` if
    /// nothing has.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, usize, SocketAddrV4)> {
        let mut control = nix::cmsg_space!(libc::c_int);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let size = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let from = message.address.ok_or(io::ErrorKind::InvalidData)?;
        let size = size.unwrap_or(message.bytes).max(1);
        Ok((message.bytes, size, SocketAddrV4::new(from.ip(), from.port())))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
