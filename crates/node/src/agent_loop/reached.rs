//! Connections that managers ask for, to the API of this host's containers: opened from here, since nobody can connect to a
//! worker.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::executor::Executor;
use crate::transport::splice::{IN_FLIGHT, splice};
use crate::transport::{Connection, pack};

const BUFFER: usize = 64 * 1024;

/// Answers request `id` of the leader at the other end of `connection`.
pub(super) async fn answer(executor: Arc<dyn Executor>, connection: Connection, id: u64) {
    let (outgoing, pieces) = mpsc::channel(IN_FLIGHT);
    if outgoing.send(pack(&id)).await.is_err() {
        return;
    }
    let answer = match connection.dispatcher().reached(ReceiverStream::new(pieces)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return tracing::debug!(%status, "a manager asked for a connection and did not take it"),
    };
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    executor.serve(theirs).await;
    splice(ours, answer.map_while(Result::ok), outgoing).await;
}
