//! One file a resource. A handler reads the request, makes one call and writes the answer; what is decided, is decided
//! elsewhere.

pub(crate) mod archive;
pub(crate) mod backup;
pub(crate) mod containers;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod image_transfer;
pub(crate) mod images;
pub(crate) mod join_tokens;
pub(crate) mod lifecycle;
pub(crate) mod networks;
pub(crate) mod nodes;
pub(crate) mod secrets;
pub(crate) mod services;
pub(crate) mod streams;
pub(crate) mod swarm;
pub(crate) mod system;
pub(crate) mod tasks;
pub(crate) mod unserved;
pub(crate) mod volumes;
