//! Which compression some bytes are in, and readers that hash what passes through them.

use std::io::{self, BufRead, BufReader, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::id::Digest;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

const READ_BUFFER_BYTES: usize = 128 * 1024;

/// Tells the compression by its first bytes, never by a media type, which registries and archives get wrong.
fn detect(head: &[u8]) -> io::Result<Compression> {
    const MAGIC: [(&[u8], Option<Compression>, &str); 4] = [
        (&[0x1f, 0x8b, 0x08], Some(Compression::Gzip), "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], Some(Compression::Zstd), "zstd"),
        (b"BZh", None, "bzip2"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], None, "xz"),
    ];
    for (magic, compression, name) in MAGIC {
        if head.starts_with(magic) {
            return compression.ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("the data is compressed with {name}; only gzip, zstd and plain tar are read"),
                )
            });
        }
    }
    Ok(Compression::None)
}

/// A reader of what `input` holds uncompressed.
pub(super) fn decompress<'a>(input: impl Read + Send + 'a) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut input = BufReader::with_capacity(READ_BUFFER_BYTES, input);
    let compression = detect(fill_some(&mut input)?)?;
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
    };
    Ok((compression, reader))
}

/// The first bytes without taking them; a short first read of a stream is not its end.
fn fill_some<R: Read>(input: &mut BufReader<R>) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(input.buffer())
}

/// Hashes and counts what is read through it.
pub(super) struct HashReader<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
}

impl<R: Read> HashReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    /// Reads to the end, so that the digest is of everything: tar readers stop at the end marker.
    pub(super) fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((Digest::from_hasher(self.hasher), self.count))
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

/// Hashes and counts what is written through it.
pub(super) struct HashWriter<W> {
    inner: W,
    hasher: Sha256,
    count: u64,
}

impl<W: io::Write> HashWriter<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    pub(super) fn finish(mut self) -> io::Result<(Digest, u64)> {
        self.inner.flush()?;
        Ok((Digest::from_hasher(self.hasher), self.count))
    }
}

impl<W: io::Write> io::Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        let plain = b"some tar".to_vec();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let cases = [
            (plain.clone(), Compression::None),
            (gzip.finish().unwrap(), Compression::Gzip),
            (zstd::encode_all(&plain[..], 1).unwrap(), Compression::Zstd),
        ];
        for (bytes, expected) in cases {
            let (found, reader) = decompress(&bytes[..]).unwrap();
            assert_eq!(found, expected);
            let (digest, count) = HashReader::new(reader).finish().unwrap();
            assert_eq!((digest, count), (Digest::of(&plain), 8));
        }
        let error = decompress(&b"BZh91AY"[..]).err().unwrap().to_string();
        assert!(error.contains("bzip2"), "{error}");
    }
}
