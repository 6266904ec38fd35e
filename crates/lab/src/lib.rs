//! Many hosts on one machine, the way kind and k3d make them for Kubernetes.
//!
//! A host is a network, mount, UTS and PID namespace of its own with its own `/run`, hostname, state folder and cgroup parent,
//! plugged into a switch that this machine is plugged into as well. Killing a host kills its PID namespace: everything on
//! it is gone at once, as when the power fails, and its disk (the state folder) remains.
//!
//! Decides what a host is made of and what it is called. Must not know what runs on it beyond "a daemon with a Docker
//! socket": a swarm is formed through the same API that users have.
//!
//! Read first: [`Lab`], then [`host`] (what becomes of the forked process) and `wire` (the switch).

pub mod host;

mod api;
mod cgroup;
mod disk;
mod machine;
mod state;
mod sys;
mod wire;

use std::io;
use std::path::{Path, PathBuf};

pub use api::call;
pub use machine::{HostInfo, HostState, Lab, UpOptions};
pub use state::{Loss, Role};

/// Where labs keep their state unless told otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/skep-lab";

/// What went wrong with a lab, for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("no lab named {0:?}: `skep lab up --name {0}` makes one, `skep lab ls --all` lists those there are")]
    NoLab(String),
    #[error("a lab named {0:?} is up already: `skep lab down --name {0}` takes it away")]
    Exists(String),
    #[error("no host named {node:?} in lab {lab:?}: it has {hosts}")]
    NoHost { lab: String, node: String, hosts: String },
    #[error("host {0} is not running: `skep lab start {0}` starts it")]
    NotRunning(String),
    #[error("host {0} is running already")]
    Running(String),
    #[error("invalid lab name {0:?}: 1 to 20 of the characters a-z, 0-9 and -")]
    Name(String),
    #[error("a lab needs root: it makes namespaces and links")]
    NotRoot,
    #[error("a lab has 1 to 7 managers and at most 200 hosts")]
    Size,
    #[error("no free 10.91.x.0/24 left for another lab")]
    NoSubnet,
    #[error("{what} {path}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("{what}")]
    Netlink { what: String, source: rtnetlink::Error },
    #[error("{what}")]
    Nft { what: String, source: skep_net::nft::NftError },
    #[error("the daemon of host {0} is not running")]
    NoDaemonProcess(String),
    #[error("{0} percent of the packets cannot be lost: 0 to 100 can")]
    Percent(u8),
    #[error("the daemon of {node} did not answer within {seconds} s; the end of its log ({log}) says:\n{tail}")]
    NoDaemon { node: String, seconds: u64, log: PathBuf, tail: String },
    #[error("{node}: {call}: {message}")]
    Api { node: String, call: String, message: String },
    #[error("the state of lab {name} cannot be read ({path}): {reason}")]
    State { name: String, path: PathBuf, reason: String },
}

pub type Result<T, E = LabError> = std::result::Result<T, E>;

fn file<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LabError + 'a {
    move |source| LabError::File { what, path: path.to_owned(), source }
}
