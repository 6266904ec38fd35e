//! A byte stream through the envelopes of a call. Half a connection can be closed: an empty envelope ends its direction.

use std::fmt::{Display, Formatter};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};

use super::proto::Envelope;

/// Header with a [`Direct`]: at `Control.Reach` where the asker may be called, and so in the refusal of a `Dispatcher.Reached`
/// that had this header, of whatever value, because its sender would do so.
pub(crate) const DIRECT_HEADER: &str = "skep-direct";

/// Whom a node may call itself instead of the leader, and what it says then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Direct {
    pub(crate) address: String,
    pub(crate) ticket: u64,
}

impl Display for Direct {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.address, self.ticket)
    }
}

impl Direct {
    pub(crate) fn of(header: &str) -> Option<Self> {
        let (address, ticket) = header.split_once(' ')?;
        Some(Self { address: address.to_owned(), ticket: ticket.parse().ok()? })
    }
}

const PIECE: usize = 32 * 1024;
/// Envelopes under way each way; a slow reader slows the writer, not memory.
pub(crate) const IN_FLIGHT: usize = 16;

/// Until both directions have ended, or the call has.
pub(crate) async fn splice(
    connection: DuplexStream,
    mut incoming: impl Stream<Item = Envelope> + Unpin,
    outgoing: mpsc::Sender<Envelope>,
) {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let out = async {
        let mut buffer = vec![0; PIECE];
        loop {
            let length = reader.read(&mut buffer).await.unwrap_or(0);
            let piece = Envelope { body: Bytes::copy_from_slice(&buffer[..length]) };
            if outgoing.send(piece).await.is_err() || length == 0 {
                return;
            }
        }
    };
    // A call that broke ends both directions, an empty envelope only one.
    let (broken, is_broken) = tokio::sync::oneshot::channel::<()>();
    let into = async {
        while let Some(Envelope { body }) = incoming.next().await {
            if body.is_empty() {
                let _ = writer.shutdown().await;
                // What else comes is how it ends.
                while incoming.next().await.is_some() {}
                break;
            }
            if writer.write_all(&body).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
        drop(broken);
    };
    tokio::join!(into, async {
        tokio::select! { () = out => {}, _ = is_broken => {} }
    });
}
