//! What needs `unsafe`, or the clock: thin wrappers, each with its reason.

pub(crate) mod clock;
