//! From the engine's values to Docker's JSON.

pub(crate) mod container;
pub(crate) mod image;
pub(crate) mod stats;
pub(crate) mod volume;
