//! Layers on disk: `layers/<diff id>/{diff,blob,layer.json}`, made in `layers/tmp` and renamed whole.
//!
//! Decides what a layer is made of and that it is true: a layer directory exists only if its tar had the digest it is named
//! by. Must not know who needs a layer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::ImageError;
use super::compress::{Compression, HashReader, HashWriter, decompress};
use super::disk::{Scratch, empty_dir, write_atomic};
use super::id::{DiffId, Digest};
use super::{pack, unpack};

/// What `layer.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) diff_id: DiffId,
    /// Bytes of files in it: what Docker calls the layer's size.
    pub(super) size_bytes: u64,
    pub(super) tar_bytes: u64,
    pub(super) source: Source,
}

/// Where the layer's exact tar can be had from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Source {
    /// The blob a registry or archive gave, or one we pushed: this digest is what registries know it by.
    Blob { compression: Compression, digest: Digest, size_bytes: u64 },
    /// A tar that came uncompressed, kept small; no registry knows these bytes.
    Kept,
    /// One file that is the directory itself (`pack::single_file`).
    SingleFile { name: String },
}

#[derive(Debug)]
pub(super) struct Layers {
    root: PathBuf,
    known: Mutex<BTreeMap<DiffId, Arc<Layer>>>,
}

/// A layer's bytes waiting to become one: the file lies in a scratch directory.
pub(super) struct Incoming<'a> {
    pub(super) file: &'a Path,
    /// Digest and size of the file, if known: then the file is kept as it is.
    pub(super) digest: Option<(Digest, u64)>,
    pub(super) diff_id: Option<DiffId>,
}

impl Layers {
    pub(super) fn open(root: PathBuf) -> Result<Self, ImageError> {
        fs::create_dir_all(&root).map_err(ImageError::io("create", &root))?;
        let layers = Self { root, known: Mutex::default() };
        empty_dir(&layers.scratch_root())?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&layers.root).map_err(ImageError::io("read", &layers.root))? {
            let entry = entry.map_err(ImageError::io("read", &layers.root))?;
            let Some(diff_id) =
                entry.file_name().to_str().and_then(|name| format!("sha256:{name}").parse::<DiffId>().ok())
            else {
                continue;
            };
            match read_description(&entry.path()).filter(|layer| layer.diff_id == diff_id) {
                Some(layer) => {
                    known.insert(diff_id, Arc::new(layer));
                }
                None => {
                    tracing::warn!(layer = %diff_id, "layer without a readable description removed");
                    layers.discard(&diff_id)?;
                }
            }
        }
        *layers.known() = known;
        Ok(layers)
    }

    pub(super) fn scratch_root(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn scratch(&self) -> Result<Scratch, ImageError> {
        Scratch::new(&self.scratch_root())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<DiffId, Arc<Layer>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, diff_id: &DiffId) -> Option<Arc<Layer>> {
        self.known().get(diff_id).cloned()
    }

    pub(super) fn need(&self, diff_id: &DiffId) -> Result<Arc<Layer>, ImageError> {
        self.get(diff_id).ok_or_else(|| ImageError::Internal(format!("layer {diff_id} is missing")))
    }

    pub(super) fn ids(&self) -> Vec<DiffId> {
        self.known().keys().cloned().collect()
    }

    /// The bytes of all layers.
    pub(super) fn total_bytes(&self) -> u64 {
        self.known().values().map(|layer| layer.size_bytes).sum()
    }

    fn dir(&self, diff_id: &DiffId) -> PathBuf {
        self.root.join(diff_id.hex())
    }

    pub(super) fn diff_dir(&self, diff_id: &DiffId) -> PathBuf {
        self.dir(diff_id).join("diff")
    }

    pub(super) fn blob_path(&self, diff_id: &DiffId) -> PathBuf {
        self.dir(diff_id).join("blob")
    }

    /// Unpacks and verifies; the layer is there afterwards or nothing is. `consumed` hears how much of the file was read.
    pub(super) fn register(
        &self,
        incoming: &Incoming<'_>,
        consumed: impl FnMut(u64) + Send,
    ) -> Result<Arc<Layer>, ImageError> {
        let scratch = self.scratch()?;
        let diff = scratch.join("diff");
        make_root(&diff)?;
        let file = File::open(incoming.file).map_err(ImageError::io("open", incoming.file))?;
        let unreadable = |error: io::Error| ImageError::Layer(error.to_string());
        let (compression, tar) = decompress(Watched { inner: file, read: 0, consumed }).map_err(unreadable)?;
        let mut tar = HashReader::new(tar);
        let keep = incoming.digest.is_none() && compression == Compression::None;
        let size_bytes = if keep {
            let kept = scratch.join("blob");
            let output = File::create(&kept).map_err(ImageError::io("create", &kept))?;
            let mut encoder = zstd::stream::write::Encoder::new(output, 1).map_err(ImageError::io("write", &kept))?;
            let size = unpack::unpack(Tee { from: &mut tar, to: &mut encoder }, &diff)?;
            io::copy(&mut Tee { from: &mut tar, to: &mut encoder }, &mut io::sink()).map_err(unreadable)?;
            encoder.finish().map_err(ImageError::io("write", &kept))?;
            size
        } else {
            unpack::unpack(&mut tar, &diff)?
        };
        let (diff_id, tar_bytes) = tar
            .finish()
            .map_err(|error| ImageError::Layer(format!("the layer's data is truncated or broken: {error}")))?;
        if let Some(expected) = &incoming.diff_id
            && *expected != diff_id
        {
            return Err(ImageError::DiffIdMismatch { expected: expected.to_string(), actual: diff_id.to_string() });
        }
        let source = if keep {
            Source::Kept
        } else {
            let (digest, size_bytes) = match &incoming.digest {
                Some((digest, size)) => (digest.clone(), *size),
                None => digest_of(incoming.file)?,
            };
            let blob = scratch.join("blob");
            // Renamed if it lies on the same file system, which scratch files do.
            fs::rename(incoming.file, &blob)
                .or_else(|_| fs::copy(incoming.file, &blob).map(|_| ()))
                .map_err(ImageError::io("keep", incoming.file))?;
            Source::Blob { compression, digest, size_bytes }
        };
        self.place(&scratch, Layer { diff_id, size_bytes, tar_bytes, source })
    }

    /// A layer of one file, which is `exe` itself by a hard link where that is possible: then containers and daemon share
    /// its pages in memory.
    pub(super) fn register_single_file(&self, name: &str, exe: &Path, link: bool) -> Result<Arc<Layer>, ImageError> {
        let scratch = self.scratch()?;
        let diff = scratch.join("diff");
        make_root(&diff)?;
        let file = diff.join(name);
        if !link || fs::hard_link(exe, &file).is_err() {
            fs::copy(exe, &file).map_err(ImageError::io("copy", exe))?;
            std::os::unix::fs::chown(&file, Some(0), Some(0)).map_err(ImageError::io("change the owner of", &file))?;
            fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .map_err(ImageError::io("change the mode of", &file))?;
        }
        let tar = pack::single_file(name, &file)?;
        let (diff_id, tar_bytes) = HashReader::new(tar).finish().map_err(ImageError::io("read", &file))?;
        let size_bytes = fs::metadata(&file).map_err(ImageError::io("read", &file))?.len();
        self.place(
            &scratch,
            Layer { diff_id, size_bytes, tar_bytes, source: Source::SingleFile { name: name.to_owned() } },
        )
    }

    fn place(&self, scratch: &Scratch, layer: Layer) -> Result<Arc<Layer>, ImageError> {
        let description = scratch.join("layer.json");
        let text = serde_json::to_vec(&layer).map_err(|error| ImageError::Internal(error.to_string()))?;
        write_atomic(&description, &text).map_err(ImageError::io("write", description))?;
        let mut known = self.known();
        if let Some(there) = known.get(&layer.diff_id) {
            return Ok(there.clone());
        }
        let dir = self.dir(&layer.diff_id);
        fs::rename(scratch.path(), &dir).map_err(ImageError::io("create", dir))?;
        let layer = Arc::new(layer);
        known.insert(layer.diff_id.clone(), layer.clone());
        Ok(layer)
    }

    /// The layer's exact tar.
    pub(super) fn tar(&self, layer: &Layer) -> Result<Box<dyn Read + Send>, ImageError> {
        if let Source::SingleFile { name } = &layer.source {
            return Ok(Box::new(pack::single_file(name, &self.diff_dir(&layer.diff_id).join(name))?));
        }
        let path = self.blob_path(&layer.diff_id);
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        Ok(decompress(file).map_err(ImageError::io("read", path))?.1)
    }

    /// The layer as a file that a registry takes, compressed if it is not yet; from then on that is its blob.
    pub(super) fn blob(&self, diff_id: &DiffId) -> Result<(Compression, Digest, u64), ImageError> {
        let layer = self.need(diff_id)?;
        if let Source::Blob { compression, digest, size_bytes } = &layer.source {
            return Ok((*compression, digest.clone(), *size_bytes));
        }
        let scratch = self.scratch()?;
        let path = scratch.join("blob");
        let output = File::create(&path).map_err(ImageError::io("create", &path))?;
        let writer = HashWriter::new(BufWriter::new(output));
        let mut gzip = flate2::write::GzEncoder::new(writer, flate2::Compression::new(6));
        io::copy(&mut self.tar(&layer)?, &mut gzip).map_err(ImageError::io("compress", &path))?;
        let finished = gzip.finish().and_then(HashWriter::finish);
        let (digest, size_bytes) = finished.map_err(ImageError::io("compress", &path))?;
        let source = Source::Blob { compression: Compression::Gzip, digest: digest.clone(), size_bytes };
        let layer = Layer { source, ..(*layer).clone() };
        let text = serde_json::to_vec(&layer).map_err(|error| ImageError::Internal(error.to_string()))?;

        // The description first says what is true of either file, since a reader tells the compression by the bytes.
        let mut known = self.known();
        let target = self.blob_path(diff_id);
        fs::rename(&path, &target).map_err(ImageError::io("keep", target))?;
        let description = self.dir(diff_id).join("layer.json");
        write_atomic(&description, &text).map_err(ImageError::io("write", description))?;
        known.insert(diff_id.clone(), Arc::new(layer));
        Ok((Compression::Gzip, digest, size_bytes))
    }

    /// Takes layers out of sight at once; their files go when the returned scratch directories are dropped.
    pub(super) fn unlist(&self, unneeded: impl Fn(&DiffId) -> bool) -> Result<Vec<(Arc<Layer>, Scratch)>, ImageError> {
        let mut known = self.known();
        let ids: Vec<DiffId> = known.keys().filter(|id| unneeded(id)).cloned().collect();
        let mut gone = Vec::new();
        for id in ids {
            let scratch = self.discard(&id)?;
            gone.extend(known.remove(&id).map(|layer| (layer, scratch)));
        }
        Ok(gone)
    }

    fn discard(&self, diff_id: &DiffId) -> Result<Scratch, ImageError> {
        let scratch = self.scratch()?;
        let dir = self.dir(diff_id);
        fs::rename(&dir, scratch.join("layer")).map_err(ImageError::io("remove", dir))?;
        Ok(scratch)
    }
}

fn make_root(diff: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir(diff).map_err(ImageError::io("create", diff))?;
    fs::set_permissions(diff, fs::Permissions::from_mode(0o755)).map_err(ImageError::io("change the mode of", diff))
}

fn read_description(dir: &Path) -> Option<Layer> {
    serde_json::from_slice(&fs::read(dir.join("layer.json")).ok()?).ok()
}

pub(super) fn digest_of(path: &Path) -> Result<(Digest, u64), ImageError> {
    let file = File::open(path).map_err(ImageError::io("open", path))?;
    HashReader::new(file).finish().map_err(ImageError::io("read", path))
}

/// Tells how far a file has been read.
struct Watched<R, F> {
    inner: R,
    read: u64,
    consumed: F,
}

impl<R: Read, F: FnMut(u64)> Read for Watched<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read += n as u64;
        (self.consumed)(self.read);
        Ok(n)
    }
}

/// Writes what is read to a second place.
struct Tee<'a, R, W> {
    from: &'a mut R,
    to: &'a mut W,
}

impl<R: Read, W: io::Write> Read for Tee<'_, R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.to.write_all(&buffer[..n])?;
        Ok(n)
    }
}
