//! A process's stdio on our side: output read from its pipes or pty, shared out to the log and to whoever is attached.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use super::{OutputChunk, StdStream};
use crate::error::{EngineError, Result};

/// Read at once.
const CHUNK: usize = 16 * 1024;
/// Chunks that may wait for an attached client before the container waits for it.
const ATTACH_QUEUE: usize = 64;

/// A pipe or pty that is read or written without blocking.
pub(crate) type AsyncPipe = AsyncFd<OwnedFd>;

pub(crate) fn asynchronous(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncPipe> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    crate::sys::watch::watch(fd, interest)
}

/// Waits until there is output and takes it; `None` at its end. A pty says EIO when its last user is gone.
pub(crate) async fn take_output<T>(
    pipe: &AsyncPipe,
    mut take: impl FnMut(&OwnedFd) -> std::io::Result<Option<T>>,
) -> Option<T> {
    loop {
        let mut ready = pipe.readable().await.ok()?;
        match ready.try_io(|pipe| take(pipe.get_ref())) {
            Ok(Ok(some)) => {
                // A process that never pauses would keep this thread for itself: a ready descriptor costs no budget.
                tokio::task::yield_now().await;
                return some;
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(Err(_)) => return None,
            Err(_would_block) => {}
        }
    }
}

/// The next piece of output, by way of memory.
pub(crate) async fn read_chunk<T>(pipe: &AsyncPipe, mut see: impl FnMut(&[u8]) -> T) -> Option<T> {
    take_output(pipe, |fd| read_into(fd, &mut see)).await
}

pub(crate) fn read_into<T>(fd: &OwnedFd, see: impl FnOnce(&[u8]) -> T) -> std::io::Result<Option<T>> {
    // One buffer a thread, not one a pipe: a host has hundreds of pipes that say nothing.
    thread_local!(static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; CHUNK]));
    BUFFER.with_borrow_mut(|buffer| {
        let got = rustix::io::read(fd, &mut buffer[..])?;
        Ok((got > 0).then(|| see(&buffer[..got])))
    })
}

async fn write_all(pipe: &AsyncPipe, mut data: &[u8]) -> std::io::Result<()> {
    while !data.is_empty() {
        let written =
            pipe.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, &data[..data.len().min(CHUNK)])?)).await?;
        data = &data[written..];
    }
    Ok(())
}

/// Who is attached to a container's output.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    attached: Mutex<Vec<mpsc::Sender<OutputChunk>>>,
}

impl Hub {
    pub(crate) fn subscribe(&self) -> mpsc::Receiver<OutputChunk> {
        let (sender, receiver) = mpsc::channel(ATTACH_QUEUE);
        self.senders().push(sender);
        receiver
    }

    fn senders(&self) -> std::sync::MutexGuard<'_, Vec<mpsc::Sender<OutputChunk>>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.senders().is_empty()
    }

    /// Waits for the slowest, as Docker does: what `docker run` prints must be complete.
    pub(crate) async fn publish(&self, stream: StdStream, data: Bytes) {
        let senders = self.senders().clone();
        let mut gone = false;
        for sender in senders {
            gone |= sender.send(OutputChunk { stream, data: data.clone() }).await.is_err();
        }
        if gone {
            self.senders().retain(|s| !s.is_closed());
        }
    }

    /// The process is gone: whoever is attached reads the end.
    pub(crate) fn end(&self) {
        self.senders().clear();
    }
}

/// Where a container's stdin is; there only while it runs.
#[derive(Debug)]
pub(crate) struct StdinSlot {
    state: watch::Sender<StdinState>,
}

#[derive(Clone, Debug)]
pub(crate) enum StdinState {
    /// Not started: writers wait.
    Waiting,
    Open(Arc<AsyncPipe>),
    Closed,
}

impl Default for StdinSlot {
    fn default() -> Self {
        Self { state: watch::channel(StdinState::Waiting).0 }
    }
}

impl StdinSlot {
    pub(crate) fn set(&self, state: StdinState) {
        self.state.send_replace(state);
    }

    async fn wait(&self) -> Result<Arc<AsyncPipe>> {
        let mut receiver = self.state.subscribe();
        let state = receiver
            .wait_for(|s| !matches!(s, StdinState::Waiting))
            .await
            .map_err(|_| EngineError::Conflict("the container is gone".to_owned()))?
            .clone();
        match state {
            StdinState::Open(pipe) => Ok(pipe),
            StdinState::Waiting | StdinState::Closed => Err(EngineError::Conflict("stdin is closed".to_owned())),
        }
    }
}

/// The writing end of a process's stdin.
pub struct StdinWriter {
    target: Target,
    /// Runs when the input ends.
    on_close: Option<Box<dyn FnOnce() + Send>>,
}

enum Target {
    Container(Arc<StdinSlot>),
    Own(Arc<AsyncPipe>),
}

impl std::fmt::Debug for StdinWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StdinWriter")
    }
}

impl StdinWriter {
    pub(crate) fn of_container(slot: Arc<StdinSlot>, on_close: Option<Box<dyn FnOnce() + Send>>) -> Self {
        Self { target: Target::Container(slot), on_close }
    }

    pub(crate) fn own(pipe: Arc<AsyncPipe>) -> Self {
        Self { target: Target::Own(pipe), on_close: None }
    }

    /// Writes all of it; waits while the process does not read.
    pub async fn write_all(&mut self, data: &[u8]) -> Result<()> {
        let failed = |e: std::io::Error| EngineError::Conflict(format!("failed to write to stdin: {e}"));
        match &self.target {
            Target::Container(slot) => write_all(&*slot.wait().await?, data).await.map_err(failed),
            Target::Own(pipe) => write_all(pipe, data).await.map_err(failed),
        }
    }

    /// Ends the input: the process reads end of file (a tty gets nothing).
    pub async fn close(self) -> Result<()> {
        if let Target::Container(slot) = &self.target {
            // What was closed before the start is to be closed after it.
            let _ = slot.wait().await;
        }
        Ok(())
    }
}

impl Drop for StdinWriter {
    fn drop(&mut self) {
        if let Some(on_close) = self.on_close.take() {
            on_close();
        }
    }
}

/// Sets the window size of a pty.
pub(crate) fn resize(pty: impl AsFd, height: u16, width: u16) -> std::io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(pty, size)?)
}
