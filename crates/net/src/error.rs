//! What can go wrong with networks, in the words Docker's tools read; [`NetError::kind`] is what the HTTP status is made of.

use std::io;

use crate::dataplane::DataplaneError;

pub type Result<T> = std::result::Result<T, NetError>;

/// The class of an error: NotFound 404, Conflict 409, Invalid 400, Forbidden 403, NotImplemented 501, Internal 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Conflict,
    Invalid,
    Forbidden,
    NotImplemented,
    Internal,
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    #[error("configuration network {0:?} does not exist")]
    NoSuchConfiguration(String),
    /// What Docker's drivers say of a request that it answers with status 500.
    #[error("{0}")]
    Driver(String),
    #[error("network with name {0} already exists")]
    NetworkExists(String),
    #[error("network {0} is ambiguous ({1} matches found on ID prefix)")]
    AmbiguousNetwork(String, usize),
    /// The trailing space is Docker's.
    #[error("operation is not permitted on predefined {0} network ")]
    Predefined(String),
    #[error("{0} is a pre-defined network and cannot be removed")]
    PredefinedRemoval(String),
    #[error("error while removing network: network {network} has active endpoints ({endpoints})")]
    ActiveEndpoints { network: String, endpoints: String },
    #[error("invalid pool request: Pool overlaps with other one on this address space")]
    PoolOverlaps,
    #[error("all predefined address pools have been fully subnetted")]
    NoFreePool,
    #[error("no available IPv4 addresses on this network's address pools: {name} ({id})")]
    NoFreeAddress { name: String, id: String },
    #[error("Address already in use")]
    AddressInUse,
    #[error("driver failed programming external connectivity on endpoint {endpoint} ({endpoint_id}): {reason}")]
    Publish { endpoint: String, endpoint_id: String, reason: String },
    #[error("container {container} is not connected to network {network}")]
    NotConnected { container: String, network: String },
    #[error("endpoint with name {container} already exists in network {network}")]
    AlreadyConnected { container: String, network: String },
    #[error("no network sandbox for container {0}")]
    NoSandbox(String),
    #[error("could not find plugin {0} in v1 plugin registry: plugin not found")]
    NoSuchDriver(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    NotImplemented(String),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    #[error("failed to {action}")]
    Kernel { action: String, source: io::Error },
}

impl NetError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchNetwork(_)
            | Self::NoSuchConfiguration(_)
            | Self::NoSuchDriver(_)
            | Self::NotConnected { .. }
            | Self::NoSandbox(_) => ErrorKind::NotFound,
            Self::NetworkExists(_) => ErrorKind::Conflict,
            Self::Invalid(_) | Self::AmbiguousNetwork(..) => ErrorKind::Invalid,
            Self::Predefined(_)
            | Self::PredefinedRemoval(_)
            | Self::ActiveEndpoints { .. }
            | Self::PoolOverlaps
            | Self::AlreadyConnected { .. }
            | Self::AddressInUse
            | Self::Forbidden(_) => ErrorKind::Forbidden,
            Self::NotImplemented(_) => ErrorKind::NotImplemented,
            Self::NoFreePool
            | Self::Driver(_)
            | Self::NoFreeAddress { .. }
            | Self::Publish { .. }
            | Self::Kernel { .. } => ErrorKind::Internal,
            Self::Dataplane(DataplaneError::NoSuchNetwork(_)) => ErrorKind::NotFound,
            Self::Dataplane(_) => ErrorKind::Internal,
        }
    }
}

/// Names what was attempted when the kernel or a file refuses.
pub(crate) trait Context<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| NetError::Kernel { action: action(), source })
    }
}
