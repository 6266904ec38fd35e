//! Real containers of busybox, as root: the engine and its supervisor, without networks.
//!
//! Every trap that the runtime library sets has a test here by its name.

#![allow(clippy::unwrap_used, reason = "a helper of tests may panic as a test may")]

mod crash;
mod devices;
mod host;
mod lifecycle;
mod secrets;
mod speed;
mod traps;
