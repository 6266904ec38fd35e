//! Request and answer bodies as blocking readers and writers, and the members of an image archive as files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::compress::decompress;
use super::disk::Scratch;
use super::types::ByteStream;
use super::{ImageError, Result};

/// Reads a body on a blocking thread.
pub(super) struct BodyReader {
    stream: ByteStream,
    runtime: Handle,
    chunk: Bytes,
}

impl BodyReader {
    /// Called on the runtime, used on a blocking thread.
    pub(super) fn new(stream: ByteStream) -> Self {
        Self { stream, runtime: Handle::current(), chunk: Bytes::new() }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

/// Writes a body from a blocking thread; fails once nobody reads it any more.
pub(super) struct BodyWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
}

const CHUNK_BYTES: usize = 256 * 1024;
const CHUNKS_AHEAD: usize = 4;

impl BodyWriter {
    pub(super) fn channel() -> (Self, ByteStream) {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let stream = Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver));
        (Self { sender, pending: Vec::with_capacity(CHUNK_BYTES) }, stream)
    }

    /// Ends the body with an error, so that the reader does not take it for whole.
    pub(super) fn fail(self, error: &ImageError) {
        let _ = self.sender.blocking_send(Err(io::Error::other(error.sentence())));
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.pending, Vec::with_capacity(CHUNK_BYTES));
        self.sender.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The files of an archive in a scratch directory, under numbers: names in an archive are not trusted as paths.
pub(super) struct Members {
    scratch: Scratch,
    files: BTreeMap<String, PathBuf>,
    /// `docker save` before 25 wrote a layer that several images share once, and symlinks to it.
    links: BTreeMap<String, String>,
}

impl Members {
    pub(super) fn read(input: impl Read + Send, scratch: Scratch) -> Result<Self> {
        let broken = |error: io::Error| ImageError::Invalid(format!("the archive cannot be read: {error}"));
        let mut members = Self { scratch, files: BTreeMap::new(), links: BTreeMap::new() };
        let mut archive = tar::Archive::new(decompress(input).map_err(broken)?.1);
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let name = clean("", &String::from_utf8_lossy(&entry.path_bytes()));
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let from = if kind.is_symlink() { parent(&name) } else { "" };
                let target = clean(from, &String::from_utf8_lossy(&target));
                members.links.insert(name, target);
            } else if kind.is_file() {
                let path = members.scratch.join(members.files.len().to_string());
                let mut file = File::create(&path).map_err(ImageError::io("create", &path))?;
                let written = io::copy(&mut entry, &mut file).map_err(broken)?;
                if written != entry.size() {
                    return Err(broken(io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF")));
                }
                members.files.insert(name, path);
            }
        }
        Ok(members)
    }

    pub(super) fn file(&self, name: &str) -> Option<&PathBuf> {
        const MAX_LINKS: usize = 8;
        let mut name = clean("", name);
        for _ in 0..MAX_LINKS {
            if let Some(path) = self.files.get(&name) {
                return Some(path);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }

    pub(super) fn need(&self, name: &str) -> Result<&PathBuf> {
        self.file(name).ok_or_else(|| ImageError::Invalid(format!("invalid archive: it has no {name}")))
    }

    /// A small file's bytes.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        const MAX_BYTES: u64 = 16 * 1024 * 1024;
        let path = self.need(name)?;
        let size = std::fs::metadata(path).map_err(ImageError::io("read", path))?.len();
        if size > MAX_BYTES {
            return Err(ImageError::Invalid(format!("invalid archive: {name} is too large ({size} bytes)")));
        }
        std::fs::read(path).map_err(ImageError::io("read", path))
    }

    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(&self.bytes(name)?)
            .map_err(|error| ImageError::Invalid(format!("invalid archive: {name} cannot be read: {error}")))
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn clean(base: &str, name: &str) -> String {
    let mut components: Vec<&str> = base.split('/').filter(|c| !c.is_empty()).collect();
    for component in name.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            component => components.push(component),
        }
    }
    components.join("/")
}
