//! Sandboxes: a container's namespace with its endpoints, files, resolver and published ports.
//!
//! ```text
//! setup:     addresses -> namespace -> bridge endpoints -> overlays -> way out -> ports -> resolver -> record
//! teardown:  ports, resolver -> overlays -> links -> namespace -> record
//! ```
//!
//! What was made is written to `<exec_root>/net/<container id>.json`, from which a restarted daemon takes it up again.
//! Decides the order and what is undone on failure. Must not know what runs inside.

mod endpoints;
pub(crate) mod files;
mod lifecycle;
mod names;
mod record;

pub(crate) use endpoints::blocking;
pub(crate) use lifecycle::RunningResolver;
pub(crate) use names::{HostResolv, Zones, zone_of};
pub(crate) use record::{INTERFACE_PREFIX, Record};
