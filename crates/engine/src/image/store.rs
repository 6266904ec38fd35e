//! The store's handle: opening, the one way to change its state, and keeping layers exactly as long as they are needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_model::Timestamp;
use skep_model::reference::Reference;
use tokio::sync::Mutex as AsyncMutex;

use super::config::ImageFile;
use super::disk::write_atomic;
use super::event::{ObjectEvent, ObjectKind};
use super::id::{DiffId, Digest, ImageId};
use super::layer::{Layer, Layers};
use super::registry::Registries;
use super::state::{Image, Kept, Lookup, Saved, State, VERSION, tag_key};
use super::types::ImageStoreConfig;
use super::{ImageError, Result};

/// A cheap handle on this host's images.
#[derive(Clone, Debug)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    config: ImageStoreConfig,
    root: PathBuf,
    pub(super) layers: Layers,
    state: Mutex<State>,
    /// Held from a change until it is on disk, so that files are written in the order of the changes.
    writing: AsyncMutex<()>,
    pub(super) registries: Registries,
    pub(super) builtin: Mutex<Option<super::builtin::Builtin>>,
}

impl ImageStore {
    /// Reads what is on disk and removes what an interrupted operation left half-made.
    pub async fn open(config: ImageStoreConfig) -> Result<Self> {
        blocking(move || {
            let root = config.data_root.join("images");
            for dir in [root.join("configs"), root.join("manifests")] {
                fs::create_dir_all(&dir).map_err(ImageError::io("create", dir))?;
            }
            remove_temporaries(&root)?;
            let layers = Layers::open(config.data_root.join("layers"))?;
            let saved = read_saved(&root.join("state.json"))?;
            let images = saved.images.iter().filter_map(|(id, kept)| {
                let image = read_image(&root, &layers, id, kept);
                image.inspect_err(|error| tracing::warn!(image.id = %id, %error, "image dropped")).ok()
            });
            let state = State::restore(images.collect(), &saved);
            let registries = Registries::new(&config)?;
            let inner = Inner {
                config,
                root,
                layers,
                state: Mutex::new(state),
                writing: AsyncMutex::default(),
                registries,
                builtin: Mutex::default(),
            };
            let store = Self { inner: Arc::new(inner) };
            // Layers of containers that outlived their image are held by `orphans` until the engine has said its holds.
            drop(store.unlist_unneeded()?);
            store.remove_stale_files()?;
            Ok(store)
        })
        .await
    }

    /// What a user's text names: a reference, an id, or the beginning of an id.
    pub fn resolve(&self, name_or_id: &str) -> Result<ImageId> {
        self.image(name_or_id).map(|image| image.id)
    }

    /// The config of an image given by name or id.
    pub fn image_config(&self, name_or_id: &str) -> Result<Arc<ImageFile>> {
        self.image(name_or_id).map(|image| image.file)
    }

    /// The directories overlayfs stacks for this image, topmost first.
    pub fn rootfs_layers(&self, id: &ImageId) -> Result<Vec<PathBuf>> {
        let image = self.image(id.as_str())?;
        self.layer_dirs(&image.file.rootfs.diff_ids)
    }

    /// As [`Self::rootfs_layers`], and keeps them on disk until [`Self::release`], even if the image is removed by force.
    /// Holds are in memory: at start the engine holds again for every container it finds, then calls [`Self::sweep`].
    pub fn hold(&self, container_id: &str, id: &ImageId) -> Result<Vec<PathBuf>> {
        let diff_ids = self.state().hold(container_id, id);
        let diff_ids = diff_ids.ok_or_else(|| ImageError::NoSuchImage(id.to_string()))?;
        self.layer_dirs(&diff_ids).inspect_err(|_| self.release(container_id))
    }

    /// The container is gone. Layers that only it still needed go with the next removal or sweep.
    pub fn release(&self, container_id: &str) {
        self.state().release(container_id);
    }

    /// Removes layers that neither an image nor a container needs. The engine calls it at start, after the holds.
    pub async fn sweep(&self) -> Result<()> {
        self.change(State::drop_orphans).await?;
        self.collect_garbage().await.map(drop)
    }

    pub(super) fn image(&self, name_or_id: &str) -> Result<Image> {
        self.state().find(name_or_id).cloned().map_err(ImageError::from)
    }

    fn layer_dirs(&self, diff_ids: &[DiffId]) -> Result<Vec<PathBuf>> {
        let dir = |id| self.inner.layers.need(id).map(|layer| self.inner.layers.diff_dir(&layer.diff_id));
        diff_ids.iter().rev().map(dir).collect()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config(&self) -> &ImageStoreConfig {
        &self.inner.config
    }

    /// Changes the state and returns once it is on disk.
    pub(super) async fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T> {
        self.change_with(Vec::new(), change).await
    }

    /// As [`Self::change`], after writing files that the new state speaks of.
    async fn change_with<T>(&self, files: Vec<(PathBuf, Vec<u8>)>, change: impl FnOnce(&mut State) -> T) -> Result<T> {
        let _writing = self.inner.writing.lock().await;
        if !files.is_empty() {
            blocking(move || {
                files
                    .into_iter()
                    .try_for_each(|(path, bytes)| write_atomic(&path, &bytes).map_err(ImageError::io("write", path)))
            })
            .await?;
        }
        let (outcome, saved) = {
            let mut state = self.state();
            let outcome = change(&mut state);
            (outcome, state.saved())
        };
        let path = self.inner.root.join("state.json");
        blocking(move || {
            let text = serde_json::to_vec_pretty(&saved).map_err(|error| ImageError::Internal(error.to_string()))?;
            write_atomic(&path, &text).map_err(ImageError::io("write", path))
        })
        .await?;
        Ok(outcome)
    }

    /// Makes an image of a config whose layers are all there. The caller holds a lease on them.
    pub(super) async fn add_image(&self, raw: Vec<u8>, kept: Kept, manifest: Option<Vec<u8>>) -> Result<ImageId> {
        let id = Digest::of(&raw);
        let file = parse_config(&raw)?;
        let size_bytes = size_of(&self.inner.layers, &file)?;
        let kept = Kept { manifest: manifest.as_deref().map(Digest::of), ..kept };
        let files = std::iter::once((self.config_path(&id), raw))
            .chain(manifest.map(|bytes| (self.manifest_path(&Digest::of(&bytes)), bytes)));
        let image = Image { id: id.clone(), file: Arc::new(file), size_bytes, kept };
        self.change_with(files.collect(), |state| state.add(image)).await?;
        Ok(id)
    }

    pub(super) fn config_path(&self, id: &ImageId) -> PathBuf {
        self.inner.root.join("configs").join(id.hex())
    }

    pub(super) fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("manifests").join(digest.hex())
    }

    /// The config's own bytes.
    pub(super) fn raw_config(&self, id: &ImageId) -> Result<Vec<u8>> {
        let path = self.config_path(id);
        fs::read(&path).map_err(ImageError::io("read", path))
    }

    /// Gives an image a name, as `docker tag` does; the name leaves the image that had it.
    pub(super) async fn add_tag(&self, reference: &Reference, id: &ImageId) -> Result<()> {
        let key = tag_key(reference);
        self.change(|state| state.name(key.clone(), id.clone(), now())).await?;
        Ok(())
    }

    /// `docker tag`: gives `source` another name, `repo[:tag]`.
    pub async fn tag(&self, source: &str, target: &str) -> Result<()> {
        let id = self.resolve(source)?;
        let reference = parse_reference(target)?;
        if reference.digest.is_some() {
            return Err(ImageError::Invalid("refusing to create a tag with a digest reference".to_owned()));
        }
        self.add_tag(&reference, &id).await?;
        self.emit("tag", id.as_str(), &id, &tag_key(&reference).familiar());
        Ok(())
    }

    /// Tells the engine's event stream; the image's labels go along, as in moby.
    pub(super) fn emit(&self, action: &'static str, actor: &str, id: &ImageId, name: &str) {
        let labels = self.state().image(id).map(|image| image.file.config.labels.clone()).unwrap_or_default();
        self.emit_with(action, actor, labels, name);
    }

    pub(super) fn emit_with(
        &self,
        action: &'static str,
        actor: &str,
        mut attributes: BTreeMap<String, String>,
        name: &str,
    ) {
        attributes.insert("name".to_owned(), name.to_owned());
        let event = ObjectEvent { kind: ObjectKind::Image, action, id: actor.to_owned(), attributes };
        (self.inner.config.events)(event);
    }

    /// Keeps layers from being collected while an operation gathers the rest of an image.
    pub(super) fn lease(&self, diff_ids: &[DiffId]) -> Lease {
        self.state().lease(diff_ids);
        Lease { store: self.clone(), diff_ids: diff_ids.to_vec() }
    }

    /// Removes every layer that nobody needs; gives what went.
    pub(super) async fn collect_garbage(&self) -> Result<Vec<Arc<Layer>>> {
        // A config is on disk a moment before the state knows it.
        let _writing = self.inner.writing.lock().await;
        let store = self.clone();
        blocking(move || {
            let gone = store.unlist_unneeded()?;
            store.remove_stale_files()?;
            Ok(gone.into_iter().map(|(layer, _files)| layer).collect())
        })
        .await
    }

    fn unlist_unneeded(&self) -> Result<Vec<(Arc<Layer>, super::disk::Scratch)>> {
        // Under the state's lock: nobody can lease a layer between the question and its going.
        let state = self.state();
        let needed = state.needed_layers();
        self.inner.layers.unlist(|id| !needed.contains(id))
    }

    /// Configs and manifests of images that are gone.
    fn remove_stale_files(&self) -> Result<()> {
        let (configs, manifests) = {
            let state = self.state();
            let configs =
                state.images().map(|image| image.id.hex().to_owned()).collect::<std::collections::BTreeSet<_>>();
            (configs, state.manifests().iter().map(|digest| digest.hex().to_owned()).collect())
        };
        remove_others(&self.inner.root.join("configs"), &configs)?;
        remove_others(&self.inner.root.join("manifests"), &manifests)
    }
}

/// Ends with the operation; what it leased and did not make an image of is collected with the next removal.
pub(super) struct Lease {
    store: ImageStore,
    diff_ids: Vec<DiffId>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.state().end_lease(&self.diff_ids);
    }
}

impl From<Lookup> for ImageError {
    fn from(lookup: Lookup) -> Self {
        match lookup {
            Lookup::Missing(name) => Self::NoSuchImage(name),
            Lookup::Invalid(error) => Self::InvalidReference(error),
        }
    }
}

/// Runs on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(ImageError::Internal(format!("image work was interrupted: {error}"))),
    }
}

pub(crate) fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}

pub(super) fn parse_reference(text: &str) -> Result<Reference> {
    text.parse::<Reference>().map_err(ImageError::InvalidReference)
}

pub(super) fn parse_config(raw: &[u8]) -> Result<ImageFile> {
    serde_json::from_slice(raw)
        .map_err(|error| ImageError::Invalid(format!("the image's config cannot be read: {error}")))
}

pub(super) fn size_of(layers: &Layers, file: &ImageFile) -> Result<u64> {
    file.rootfs.diff_ids.iter().map(|id| layers.need(id).map(|layer| layer.size_bytes)).sum()
}

fn read_saved(path: &Path) -> Result<Saved> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Saved::default()),
        read => read.map_err(ImageError::io("read", path))?,
    };
    let saved: Saved = serde_json::from_slice(&text)
        .map_err(|error| ImageError::Internal(format!("{} cannot be read: {error}", path.display())))?;
    if saved.version > VERSION {
        let text = format!("{} was written by a newer version of skep ({})", path.display(), saved.version);
        return Err(ImageError::Internal(text));
    }
    Ok(saved)
}

fn read_image(root: &Path, layers: &Layers, id: &ImageId, kept: &Kept) -> Result<Image> {
    let path = root.join("configs").join(id.hex());
    let raw = fs::read(&path).map_err(ImageError::io("read", &path))?;
    let actual = Digest::of(&raw);
    if actual != *id {
        return Err(ImageError::DigestMismatch { expected: id.to_string(), actual: actual.to_string() });
    }
    let file = parse_config(&raw)?;
    let size_bytes = size_of(layers, &file)?;
    Ok(Image { id: id.clone(), file: Arc::new(file), size_bytes, kept: kept.clone() })
}

fn remove_temporaries(root: &Path) -> Result<()> {
    for dir in [root.to_owned(), root.join("configs"), root.join("manifests")] {
        for entry in fs::read_dir(&dir).map_err(ImageError::io("read", &dir))?.flatten() {
            if entry.file_name().as_encoded_bytes().ends_with(b".tmp") {
                fs::remove_file(entry.path()).map_err(ImageError::io("remove", entry.path()))?;
            }
        }
    }
    Ok(())
}

fn remove_others(dir: &Path, keep: &std::collections::BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(ImageError::io("read", dir))?.flatten() {
        let stays = entry.file_name().to_str().is_some_and(|name| keep.contains(name) || name.ends_with(".tmp"));
        if !stays {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}
