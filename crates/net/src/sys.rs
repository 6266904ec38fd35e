//! What needs `unsafe`: the TUN/TAP driver's calls, and a socket option that no library names.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

mod calls {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD as libc::Ioctl);
    nix::ioctl_write_int_bad!(set_persistent, libc::TUNSETPERSIST as libc::Ioctl);
    nix::ioctl_write_ptr_bad!(set_little_endian, libc::TUNSETVNETLE, libc::c_int);
}

/// Makes `device`, which is `/dev/net/tun` just opened, the other side of the TAP interface of this name in the namespace it
/// was opened in; the interface is made if it is not there, and stays when `device` is closed. What is read and written are
/// little-endian virtio-net headers with frames, with checksums and TCP segmentation left to the reader.
pub(crate) fn attach_tap(device: &OwnedFd, name: &str) -> io::Result<()> {
    // SAFETY: all zeroes is a value of this structure of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let (fd, one) = (device.as_raw_fd(), 1);
    // SAFETY: the descriptor is open while `device` is borrowed; the calls read a structure and an integer that live longer
    // than them, and keep neither.
    unsafe {
        calls::set_interface(fd, &raw const request)?;
        calls::set_little_endian(fd, &raw const one)?;
        calls::set_offload(fd, offload.cast_signed())?;
        calls::set_persistent(fd, one)?;
    }
    Ok(())
}

/// Has datagrams too large for a way fragmented on it, rather than believing whoever says that they are.
pub(crate) fn let_fragment(socket: &impl AsRawFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_DONT)
}

/// Has datagrams too large for a way lost on it, whatever is known of the way.
pub(crate) fn forbid_fragments(socket: &impl AsRawFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE)
}

/// Gives a raw socket only those UDP packets that have this word so many bytes into what UDP carries.
pub(crate) fn only_udp_with(socket: &impl AsRawFd, offset: usize, word: u32) -> io::Result<()> {
    let offset = u32::try_from(offset).map_err(io::Error::other)?;
    let say = |code: u32, if_true, if_false, k| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt: if_true,
        jf: if_false,
        k,
    };
    // The packet begins with the header of IP, of four times the length its first byte says; that of UDP has eight bytes.
    let mut program = [
        say(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
        say(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, 0, 0, 8 + offset),
        say(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, word),
        say(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        say(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: 5, filter: program.as_mut_ptr() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
}

fn set<T>(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(std::mem::size_of_val(value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open while `socket` is borrowed, and the value is as long as is said; what a filter points to
    // lives until the call has copied it.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
