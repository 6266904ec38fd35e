//! Loads a compiled seccomp filter into the calling process.

use std::io;

/// Keeps speculative stores as they are, as runc does by default: disabling them costs every process.
const SPEC_ALLOW: libc::c_ulong = 1 << 2;

/// `program` is an array of `struct sock_filter` in memory order.
pub(crate) fn load(program: &[u8]) -> io::Result<()> {
    let size = std::mem::size_of::<libc::sock_filter>();
    let count = program.len() / size;
    let count = libc::c_ushort::try_from(count).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // A copy with the alignment the kernel's struct has; a byte slice promises none.
    let mut filter = Vec::with_capacity(usize::from(count));
    for chunk in program.chunks_exact(size) {
        filter.push(libc::sock_filter {
            code: u16::from_ne_bytes([chunk[0], chunk[1]]),
            jt: chunk[2],
            jf: chunk[3],
            k: u32::from_ne_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
        });
    }
    let prog = libc::sock_fprog { len: count, filter: filter.as_mut_ptr() };
    for flags in [SPEC_ALLOW, 0] {
        // SAFETY: seccomp(2) reads `len` filters behind `filter`, both alive over the call, and keeps no pointer.
        let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const prog) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if flags == 0 || error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Err(io::Error::from(io::ErrorKind::InvalidInput))
}
