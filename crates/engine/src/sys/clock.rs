//! The clocks, read in one place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skep_model::Timestamp;

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// Since this host was started, sleep included: the same for every process, and it never jumps.
pub(crate) fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the struct it is given.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    debug_assert_eq!(read, 0, "every Linux has this clock");
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// How far this host's local time is ahead of UTC.
pub(crate) fn local_offset_secs(at: Timestamp) -> i32 {
    let secs: libc::time_t = at.0.div_euclid(1_000_000_000);
    // SAFETY: all fields are numbers or a pointer, of which zero is a value.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to what lives until the call returns.
    let read = unsafe { libc::localtime_r(&raw const secs, &raw mut parts) };
    if read.is_null() { 0 } else { i32::try_from(parts.tm_gmtoff).unwrap_or(0) }
}
