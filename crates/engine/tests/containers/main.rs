//! Real containers of busybox, as root: the engine and its supervisor, without networks.
//!
//! Every trap that the runtime library sets has a test here by its name.

mod crash;
mod host;
mod lifecycle;
mod speed;
mod traps;
