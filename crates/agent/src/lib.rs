//! The worker's mind: what to do about the tasks a host was given, and what its kernel should look like.
//!
//! Decides the next step of each task ([`task`]), how a task's spec becomes a container ([`spec`]), what the data plane of this
//! host is ([`dataplane`]), what a container's resolver answers ([`dns`]), which manager is asked for work and when a silent
//! one is given up ([`line`](mod@line)), and until when a task may run on a host that no manager answers ([`fence`]). Must not
//! know how any of it is done: effects come out as values, what became of them goes in as events, time is an argument.
//!
//! Read first: [`task`], then [`worker`] which holds one machine per task.
#![forbid(unsafe_code)]

pub mod task;
pub mod worker;

pub mod spec;
mod template;

pub mod dataplane;
pub mod dns;
pub mod fence;
pub mod line;
