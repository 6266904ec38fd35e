//! A byte stream through the envelopes of a call. Half a connection can be closed: an empty envelope ends its direction.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};

use super::proto::Envelope;

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
