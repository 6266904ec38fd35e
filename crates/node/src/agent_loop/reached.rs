//! Connections that managers ask for, to the API of this host's containers: opened from here, since nobody can connect to a
//! worker. They outlive the session they were asked for on, and where the manager that wants one can be called, the leader.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

use super::executor::Executor;
use crate::transport::proto::Envelope;
use crate::transport::splice::{DIRECT_HEADER, Direct, IN_FLIGHT, splice};
use crate::transport::{Connection, LiveTls, pack};

const BUFFER: usize = 64 * 1024;
/// Well within what the one who asks waits; the leader is called after it.
const DIRECT_DEADLINE: Duration = Duration::from_secs(2);

/// Both directions of a call.
type Line = (Streaming<Envelope>, mpsc::Sender<Envelope>);

/// What it takes to answer.
#[derive(Clone)]
pub(super) struct Switchboard {
    pub(super) executor: Arc<dyn Executor>,
    pub(super) tls: LiveTls,
    /// Ends the connections with this member.
    pub(super) cancel: CancellationToken,
}

impl Switchboard {
    /// Answers request `id` of the leader at the other end of `connection`.
    pub(super) fn answer(&self, connection: Connection, id: u64) {
        let this = self.clone();
        tokio::spawn(self.cancel.clone().run_until_cancelled_owned(async move {
            match this.call_back(&connection, id).await {
                Ok((incoming, outgoing)) => {
                    let (ours, theirs) = tokio::io::duplex(BUFFER);
                    this.executor.serve(theirs).await;
                    splice(ours, incoming.map_while(Result::ok), outgoing).await;
                }
                Err(status) => tracing::debug!(%status, "a manager asked for a connection and did not take it"),
            }
        }));
    }

    async fn call_back(&self, leader: &Connection, id: u64) -> Result<Line, Status> {
        let refused = match reached(leader, id, true).await {
            Ok(line) => return Ok(line),
            Err(status) => status,
        };
        let direct = refused.metadata().get(DIRECT_HEADER).and_then(|header| Direct::of(header.to_str().ok()?));
        let Some(Direct { address, ticket }) = direct else { return Err(refused) };
        match timeout(DIRECT_DEADLINE, self.reached_directly(&address, ticket)).await {
            Ok(Ok(line)) => return Ok(line),
            Ok(Err(status)) => tracing::debug!(manager = address, %status, "not called directly"),
            Err(_) => tracing::debug!(manager = address, "no answer to a direct call"),
        }
        reached(leader, id, false).await
    }

    async fn reached_directly(&self, address: &str, ticket: u64) -> Result<Line, Status> {
        let connection =
            Connection::lazy(address, &self.tls).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (outgoing, pieces) = opened(ticket)?;
        let answer = connection.dispatcher().reached_directly(ReceiverStream::new(pieces)).await?;
        Ok((answer.into_inner(), outgoing))
    }
}

async fn reached(leader: &Connection, id: u64, directly: bool) -> Result<Line, Status> {
    let (outgoing, pieces) = opened(id)?;
    let mut request = Request::new(ReceiverStream::new(pieces));
    if directly {
        request.metadata_mut().insert(DIRECT_HEADER, MetadataValue::from_static("yes"));
    }
    let answer = leader.dispatcher().reached(request).await?;
    Ok((answer.into_inner(), outgoing))
}

fn opened(number: u64) -> Result<(mpsc::Sender<Envelope>, mpsc::Receiver<Envelope>), Status> {
    let (outgoing, pieces) = mpsc::channel(IN_FLIGHT);
    outgoing.try_send(pack(&number)).map_err(|_| Status::internal("an empty channel is full"))?;
    Ok((outgoing, pieces))
}
