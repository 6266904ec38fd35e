//! The Docker Engine API over unix sockets and TCP.
//!
//! Decides how a request reaches the engine, the network or the swarm, and how their answers look on the wire: routes, one
//! file a resource; streams and hijacked connections; the one place where errors become HTTP status. Must not decide
//! anything about containers or services, and keeps no state of its own.
//!
//! ```text
//!   listen (accept, TLS) -> serve (version prefix, common headers) -> router -> routes/*  -> node, engine
//!                                                                            \-> stream/* (stdcopy, hijack, JSON lines)
//! ```
//!
//! Read first: [`Server`], then `router`, then any file of `routes`.

mod convert;
mod error;
mod extract;
mod listen;
mod remote;
mod router;
mod routes;
mod serve;
mod state;
mod stream;
mod tls;

pub use listen::{ListenError, Listener};
pub use serve::Server;
pub use state::{About, ServerState};
pub use tls::{TlsError, TlsFiles};
