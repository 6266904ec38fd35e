//! The container engine: images, containers, exec, logs, volumes; one supervisor process a host.
//!
//! Decides how a container is made, run and forgotten on this host. Must not know of swarms or networks: sandboxes come
//! through [`SandboxDriver`], tasks are containers with a few extras.
//!
//! ```text
//!   Engine (tokio) --- unix socket ---> supervisor (one thread) --fork--> helper --libcontainer--> container init
//!      logs, state, policies              parent of all inits, exit codes on disk, outlives the daemon
//! ```
//!
//! Read first: [`Engine`], then [`supervisor`], then `spec`.

pub mod bench;
pub mod config;
pub mod container;
pub mod engine;
pub mod error;
pub mod event;
pub mod image;
pub mod init;
pub mod supervisor;
pub mod volume;

mod cgroup;
mod logs;
mod rootfs;
mod seccomp;
mod spec;
mod sys;

pub use config::{EngineConfig, SandboxDriver};
pub use engine::Engine;
pub use error::{EngineError, ErrorKind, Result};
pub use event::{EngineEvent, EventBus, EventKind};

/// How long this host has been up, sleep included: the clock of leases.
pub fn since_boot() -> std::time::Duration {
    sys::clock::since_boot()
}
