//! moby's `stdcopy`: stdout and stderr over one connection, each piece with an eight-byte header.

use bytes::{BufMut, Bytes, BytesMut};
use skep_engine::container::StdStream;

/// Whether pieces are framed, which the client learns from the content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A terminal's output as it is.
    Raw,
    Multiplexed,
}

impl Framing {
    pub(crate) fn of_tty(tty: bool) -> Self {
        if tty { Self::Raw } else { Self::Multiplexed }
    }

    /// Clients since API 1.42 are told which; older ones know it from the container.
    pub(crate) fn content_type(self, version: skep_api::ApiVersion) -> &'static str {
        match self {
            Self::Multiplexed if version >= skep_api::ApiVersion::new(1, 42) => {
                "application/vnd.docker.multiplexed-stream"
            }
            Self::Raw | Self::Multiplexed => "application/vnd.docker.raw-stream",
        }
    }

    pub(crate) fn wrap(self, stream: StdStream, data: Bytes) -> Bytes {
        match self {
            Self::Raw => data,
            Self::Multiplexed => frame(stream, &data),
        }
    }
}

pub(crate) fn frame(stream: StdStream, data: &[u8]) -> Bytes {
    let kind = match stream {
        StdStream::Stdin => 0,
        StdStream::Stdout => 1,
        StdStream::Stderr => 2,
    };
    framed(kind, data)
}

/// An error of the daemon's, at which the client ends (moby `stdcopy.Systemerr`).
pub(crate) fn error(framing: Framing, text: &str) -> Bytes {
    match framing {
        Framing::Raw => Bytes::copy_from_slice(text.as_bytes()),
        Framing::Multiplexed => framed(3, text.as_bytes()),
    }
}

fn framed(kind: u8, data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + data.len());
    out.put_slice(&[kind, 0, 0, 0]);
    out.put_u32(u32::try_from(data.len()).expect("pieces are far smaller than 4 GiB"));
    out.put_slice(data);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(&frame(StdStream::Stderr, b"hi")[..], b"\x02\0\0\0\0\0\0\x02hi");
        assert_eq!(&frame(StdStream::Stdout, b"")[..], b"\x01\0\0\0\0\0\0\0");
        assert_eq!(&Framing::Raw.wrap(StdStream::Stdout, Bytes::from_static(b"x"))[..], b"x");
    }

    #[test]
    fn content_types() {
        let new = skep_api::ApiVersion::new(1, 42);
        let old = skep_api::ApiVersion::new(1, 41);
        assert_eq!(Framing::of_tty(false).content_type(new), "application/vnd.docker.multiplexed-stream");
        assert_eq!(Framing::of_tty(true).content_type(new), "application/vnd.docker.raw-stream");
        assert_eq!(Framing::of_tty(false).content_type(old), "application/vnd.docker.raw-stream");
    }
}
