//! Attach and exec take the connection over: after `101 UPGRADED` it is no longer HTTP but a process's input and output.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skep_api::ApiVersion;
use skep_engine::container::{Attached, OutputStream, StdStream, StdinWriter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::detach::{DetachKeys, Passed};
use super::stdcopy::Framing;
use crate::state::ServerState;

/// How often a client that ended its input is looked after.
const WATCH_PERIOD: Duration = Duration::from_secs(2);

/// What the request said about the connection, to be taken before the process is attached to.
pub(crate) struct Hijack {
    upgrade: Option<OnUpgrade>,
    body: Body,
}

impl Hijack {
    pub(crate) fn prepare(mut request: Request) -> Self {
        let asked = request.headers().contains_key(header::UPGRADE);
        let upgrade = if asked { Some(hyper::upgrade::on(&mut request)) } else { None };
        Self { upgrade, body: request.into_body() }
    }

    /// With the body already read (exec start has one).
    pub(crate) fn without_body(upgrade: Option<OnUpgrade>) -> Self {
        Self { upgrade, body: Body::empty() }
    }

    /// Answers, and connects the client with the process. A client that did not ask for an upgrade gets the output as the
    /// body of a 200 and its own body is the input; that is as much of the pre-1.20 protocol as HTTP allows.
    pub(crate) fn connect(
        self,
        attached: Attached,
        keys: Option<DetachKeys>,
        version: ApiVersion,
        state: &ServerState,
        on_detach: impl FnOnce() + Send + 'static,
    ) -> Response {
        let framing = Framing::of_tty(attached.tty);
        let content_type = framing.content_type(version);
        let Attached { stdin, output, .. } = attached;
        let Some(upgrade) = self.upgrade else {
            return plain(self.body, stdin, output, framing, content_type, state);
        };
        let stop = state.stop().clone();
        state.work().spawn(async move {
            match upgrade.await {
                Ok(upgraded) => {
                    let io = TokioIo::new(upgraded);
                    if pump(io, stdin, output, framing, keys, &stop).await {
                        on_detach();
                    }
                }
                Err(error) => tracing::debug!(%error, "client went away before the connection was handed over"),
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp")
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::empty())
            .expect("status and headers are constants")
    }
}

fn plain(
    body: Body,
    stdin: Option<StdinWriter>,
    output: OutputStream,
    framing: Framing,
    content_type: &'static str,
    state: &ServerState,
) -> Response {
    if let Some(stdin) = stdin {
        let stop = state.stop().clone();
        state.work().spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = feed(body, stdin) => {}
            }
        });
    }
    super::lines::streamed(content_type, framed(output, framing), state.stop())
}

fn framed(output: OutputStream, framing: Framing) -> impl Stream<Item = Bytes> + Send {
    output.filter_map(move |chunk| {
        std::future::ready(match chunk {
            Ok(chunk) => Some(framing.wrap(chunk.stream, chunk.data)),
            Err(error) => {
                tracing::debug!(%error, "output ended early");
                None
            }
        })
    })
}

async fn feed(mut body: Body, mut stdin: StdinWriter) {
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data()
            && stdin.write_all(&data).await.is_err()
        {
            return;
        }
    }
    let _ = stdin.close().await;
}

/// How an input side ended.
#[derive(Debug, PartialEq, Eq)]
enum InputEnd {
    Gone,
    Detached,
}

/// Copies both ways until the output ends, the client goes, or it detaches (then true).
async fn pump<T>(
    io: T,
    stdin: Option<StdinWriter>,
    output: OutputStream,
    framing: Framing,
    keys: Option<DetachKeys>,
    stop: &CancellationToken,
) -> bool
where
    T: AsyncRead + AsyncWrite + Send,
{
    let (reader, mut writer) = tokio::io::split(io);
    let end = tokio::select! {
        () = stop.cancelled() => InputEnd::Gone,
        () = copy_output(output, &mut writer, framing) => InputEnd::Gone,
        end = copy_input(reader, stdin, keys) => end,
    };
    let _ = writer.shutdown().await;
    end == InputEnd::Detached
}

/// Hands on what the client types. After its end of input the process gets its own, and the client is watched: one that
/// only said "no more input" still wants the output, one that is gone does not, and a quiet process would never tell.
async fn copy_input<R: AsyncRead + Unpin>(
    mut reader: R,
    mut stdin: Option<StdinWriter>,
    mut keys: Option<DetachKeys>,
) -> InputEnd {
    let mut buffer = vec![0_u8; 32 * 1024];
    loop {
        let input = match reader.read(&mut buffer).await {
            Err(_) => return InputEnd::Gone,
            Ok(0) => {
                if let Some(stdin) = stdin.take() {
                    let _ = stdin.close().await;
                }
                tokio::time::sleep(WATCH_PERIOD).await;
                continue;
            }
            Ok(n) => &buffer[..n],
        };
        let passed = match &mut keys {
            None => Passed { data: input.to_vec(), detach: false },
            Some(keys) => keys.pass(input),
        };
        // Input nobody reads, or that the process closed, is taken and dropped, or the client's writes would block.
        if let Some(writer) = &mut stdin
            && writer.write_all(&passed.data).await.is_err()
        {
            stdin = None;
        }
        if passed.detach {
            return InputEnd::Detached;
        }
    }
}

async fn copy_output<W: AsyncWrite + Unpin>(mut output: OutputStream, writer: &mut W, framing: Framing) {
    while let Some(chunk) = output.next().await {
        let bytes = match chunk {
            Ok(chunk) => framing.wrap(chunk.stream, chunk.data),
            Err(error) if framing == Framing::Multiplexed => {
                super::stdcopy::frame(StdStream::Stderr, format!("error from daemon in stream: {error}\n").as_bytes())
            }
            Err(_) => return,
        };
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use skep_engine::container::OutputChunk;

    use super::*;

    fn output(pieces: Vec<(StdStream, &'static [u8])>) -> OutputStream {
        let pieces =
            pieces.into_iter().map(|(stream, data)| Ok(OutputChunk { stream, data: Bytes::from_static(data) }));
        stream::iter(pieces).boxed()
    }

    async fn read_all(mut client: tokio::io::DuplexStream) -> Vec<u8> {
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        got
    }

    #[tokio::test]
    async fn output_is_framed_and_the_end_is_told() {
        let (client, server) = tokio::io::duplex(1024);
        let stop = CancellationToken::new();
        let pieces = output(vec![(StdStream::Stdout, b"out"), (StdStream::Stderr, b"err")]);
        let (got, detached) =
            tokio::join!(read_all(client), pump(server, None, pieces, Framing::Multiplexed, None, &stop));
        assert_eq!(got, b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\x03err");
        assert!(!detached);
    }

    #[tokio::test]
    async fn a_client_that_ends_its_input_still_gets_the_output() {
        let (mut client, server) = tokio::io::duplex(1024);
        let stop = CancellationToken::new();
        client.shutdown().await.unwrap();
        let pieces = output(vec![(StdStream::Stdout, b"late")]);
        let (got, _) = tokio::join!(read_all(client), pump(server, None, pieces, Framing::Raw, None, &stop));
        assert_eq!(got, b"late");
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_a_quiet_stream() {
        let (client, server) = tokio::net::UnixStream::pair().unwrap();
        let quiet: OutputStream = stream::pending().boxed();
        let stop = CancellationToken::new();
        let pumped = tokio::spawn(async move {
            let connection = crate::listen::Connection::Unix(server);
            pump(connection, None, quiet, Framing::Raw, None, &stop).await
        });
        drop(client);
        let ended = tokio::time::timeout(Duration::from_secs(10), pumped).await;
        assert!(!ended.expect("ends by itself").unwrap());
    }

    #[tokio::test]
    async fn stopping_the_server_ends_a_quiet_stream() {
        let (client, server) = tokio::io::duplex(1024);
        let stop = CancellationToken::new();
        stop.cancel();
        let quiet: OutputStream = stream::pending().boxed();
        let (got, _) = tokio::join!(read_all(client), pump(server, None, quiet, Framing::Raw, None, &stop));
        assert!(got.is_empty());
    }
}
