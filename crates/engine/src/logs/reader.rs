//! Reads a log back, across its rotated files, from the end if only the tail is wanted.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use skep_model::Timestamp;

use super::Line;
use super::writer::{compressed, numbered};
use crate::container::{LogRecord, LogsRequest, StdStream};

const BLOCK: usize = 64 * 1024;

/// Everything the log has now that the request wants, and where to read on.
pub(crate) fn read(path: &Path, request: &LogsRequest) -> std::io::Result<(Vec<LogRecord>, LogReader)> {
    let mut records = Vec::new();
    let mut files = rotated(path);
    let mut reader = LogReader::open(path)?;
    let mut missing = request.tail.unwrap_or(usize::MAX);
    if missing == 0 {
        reader.skip_all()?;
        return Ok((records, reader));
    }
    // The newest file through the reader, so that it stands where this reading ended.
    let newest = reader.read_tail(missing, request)?;
    missing = missing.saturating_sub(newest.len());
    files.reverse();
    let mut older = Vec::new();
    for file in files {
        if missing == 0 {
            break;
        }
        let found = LogReader::of_full(&file)?.read_tail(missing, request)?;
        missing = missing.saturating_sub(found.len());
        older.push(found);
    }
    for found in older.into_iter().rev() {
        records.extend(found);
    }
    records.extend(newest);
    records.retain(|r| wanted(r, request));
    Ok((records, reader))
}

/// `x.log.3.gz`, `x.log.2.gz`, `x.log.1`: oldest first.
fn rotated(path: &Path) -> Vec<PathBuf> {
    // The plain one is whole as long as it is there.
    let there = |n: usize| [numbered(path, n), compressed(path, n)].into_iter().find(|p| p.exists());
    let mut files: Vec<_> = (1..).map_while(there).collect();
    files.reverse();
    files
}

pub(crate) fn wanted(record: &LogRecord, request: &LogsRequest) -> bool {
    of_stream(record, request)
        && request.since.is_none_or(|since| record.time >= since)
        && request.until.is_none_or(|until| record.time <= until)
}

fn of_stream(record: &LogRecord, request: &LogsRequest) -> bool {
    match record.stream {
        StdStream::Stderr => request.stderr,
        StdStream::Stdin | StdStream::Stdout => request.stdout,
    }
}

/// A place in a log that is still written.
#[derive(Debug)]
pub(crate) struct LogReader {
    path: PathBuf,
    /// None until the log exists.
    file: Option<File>,
    /// The beginning of a record whose end is not written yet.
    partial: Vec<u8>,
}

impl LogReader {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) if path.extension().is_some_and(|e| e == "gz") => Some(unpacked(file, path)?),
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), file, partial: Vec::new() })
    }

    /// One that is written no more: nothing follows where it ends, whatever has its name by then.
    fn of_full(path: &Path) -> std::io::Result<Self> {
        Ok(Self { path: PathBuf::new(), ..Self::open(path)? })
    }

    fn skip_all(&mut self) -> std::io::Result<()> {
        if let Some(file) = &mut self.file {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(())
    }

    /// The last `count` records of the streams asked for.
    fn read_tail(&mut self, count: usize, request: &LogsRequest) -> std::io::Result<Vec<LogRecord>> {
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        if count == usize::MAX {
            let mut records = Vec::new();
            while self.next(&mut records)? {}
            records.retain(|r| of_stream(r, request));
            return Ok(records);
        }
        let end = file.seek(SeekFrom::End(0))?;
        let mut start = end;
        let mut bytes = Vec::new();
        loop {
            let mut found: Vec<LogRecord> = lines(&bytes, start == 0).filter_map(parse).collect();
            found.retain(|r| of_stream(r, request));
            if found.len() >= count || start == 0 {
                file.seek(SeekFrom::Start(end))?;
                return Ok(found.split_off(found.len().saturating_sub(count)));
            }
            // Twice as much each time, so that a long tail is not parsed over and over.
            let more = (bytes.len().max(BLOCK) as u64).min(start);
            start -= more;
            let mut block = vec![0; usize::try_from(more).unwrap_or(BLOCK)];
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut block)?;
            block.extend_from_slice(&bytes);
            bytes = block;
        }
    }

    /// Reads on by about a block; false if there is nothing more now. Follows a rotation.
    pub(crate) fn next(&mut self, records: &mut Vec<LogRecord>) -> std::io::Result<bool> {
        if self.file.is_none() {
            *self = Self::open(&self.path)?;
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut block = vec![0; BLOCK];
        let got = file.read(&mut block)?;
        if got == 0 {
            let inode = file.metadata()?.ino();
            let rotated = std::fs::metadata(&self.path).is_ok_and(|m| m.ino() != inode);
            if rotated {
                *self = Self::open(&self.path)?;
            }
            return Ok(rotated);
        }
        self.partial.extend_from_slice(&block[..got]);
        if let Some(end) = self.partial.iter().rposition(|b| *b == b'\n') {
            let rest = self.partial.split_off(end + 1);
            records.extend(lines(&self.partial, true).filter_map(parse));
            self.partial = rest;
        }
        Ok(true)
    }
}

/// In a file without a name: a log is read from its end.
fn unpacked(file: File, path: &Path) -> std::io::Result<File> {
    let mut plain = tempfile::tempfile_in(path.parent().unwrap_or(Path::new("/")))?;
    std::io::copy(&mut flate2::read::MultiGzDecoder::new(file), &mut plain)?;
    plain.rewind()?;
    Ok(plain)
}

/// Complete lines; the first one only if the bytes begin at a line's beginning.
fn lines(bytes: &[u8], from_start: bool) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|b| *b == b'\n').skip(usize::from(!from_start)).filter(|line| line.ends_with(b"\n"))
}

/// A line that is no record (half written by a host that crashed) is left out.
fn parse(line: &[u8]) -> Option<LogRecord> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    Some(LogRecord {
        stream: if line.stream == "stderr" { StdStream::Stderr } else { StdStream::Stdout },
        time: Timestamp::parse_rfc3339(&line.time).unwrap_or_default(),
        data: Bytes::copy_from_slice(line.log.as_bytes()),
        attributes: line.attrs.into_owned(),
    })
}
