//! What needs `unsafe`, or the clock: thin wrappers, each with its reason.

pub(crate) mod clock;
pub(crate) mod device_filter;
pub(crate) mod process;
pub(crate) mod seccomp;
pub(crate) mod watch;
