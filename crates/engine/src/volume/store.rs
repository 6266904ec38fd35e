//! The store's handle: names, references, and the directory behind each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_model::Labels;
use tokio::sync::Mutex as AsyncMutex;

use super::types::{Populate, Saved, Volume, VolumePruneReport, VolumeSpec, VolumeUsage};
use super::{Result, VolumeError, copy, local};
use crate::image::disk::write_atomic;
use crate::image::{EventSink, Filter, Filters, ObjectEvent, ObjectKind};

const DRIVER: &str = "local";
/// moby marks volumes without a name of their own by this label.
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";
const DATA: &str = "_data";
const DESCRIPTION: &str = "volume.json";
/// Not a volume name: half-made and half-removed volumes.
const SCRATCH: &str = ".tmp";
const LIST_FILTERS: [&str; 5] = ["dangling", "name", "label", "label!", "driver"];
const PRUNE_FILTERS: [&str; 3] = ["all", "label", "label!"];

/// A cheap handle on this host's volumes.
#[derive(Clone)]
pub struct VolumeStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    events: EventSink,
    volumes: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Clone)]
struct Entry {
    saved: Saved,
    /// Containers that have it, started or not.
    references: BTreeSet<String>,
    /// Containers that run with it.
    mounts: BTreeSet<String>,
    /// One mount, unmount or removal at a time.
    busy: Arc<AsyncMutex<()>>,
}

impl Entry {
    fn new(saved: Saved) -> Self {
        Self { saved, references: BTreeSet::new(), mounts: BTreeSet::new(), busy: Arc::default() }
    }
}

impl fmt::Debug for VolumeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeStore").field("root", &self.inner.root).finish_non_exhaustive()
    }
}

impl VolumeStore {
    /// Reads what is on disk under `data_root/volumes`. Mounts left by a daemon that died are taken over at their next use.
    pub async fn open(data_root: &Path, events: EventSink) -> Result<Self> {
        let root = data_root.join("volumes");
        blocking(move || {
            let scratch = root.join(SCRATCH);
            if scratch.exists() {
                fs::remove_dir_all(&scratch).map_err(VolumeError::io("remove", &scratch))?;
            }
            fs::create_dir_all(&scratch).map_err(VolumeError::io("create", &scratch))?;
            let mut volumes = BTreeMap::new();
            for entry in fs::read_dir(&root).map_err(VolumeError::io("read", &root))?.flatten() {
                let Some(name) = entry.file_name().to_str().filter(|name| is_name(name)).map(str::to_owned) else {
                    continue;
                };
                if !entry.path().join(DATA).is_dir() {
                    continue;
                }
                let text = fs::read(entry.path().join(DESCRIPTION)).unwrap_or_default();
                let saved = serde_json::from_slice(&text).unwrap_or_else(|error| {
                    // The data is worth more than its labels.
                    tracing::warn!(volume = name, %error, "volume without a readable description taken as a plain one");
                    Saved::default()
                });
                volumes.insert(name, Entry::new(saved));
            }
            Ok(Self { inner: Arc::new(Inner { root, events, volumes: Mutex::new(volumes) }) })
        })
        .await
    }

    fn volumes(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.inner.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn data_dir(&self, name: &str) -> PathBuf {
        self.inner.root.join(name).join(DATA)
    }

    fn volume(&self, name: &str, entry: &Entry) -> Volume {
        Volume {
            name: name.to_owned(),
            driver: DRIVER.to_owned(),
            mountpoint: self.data_dir(name),
            created_at: entry.saved.created_at,
            labels: entry.saved.labels.clone(),
            options: entry.saved.options.clone(),
            anonymous: entry.saved.labels.contains_key(ANONYMOUS_LABEL),
        }
    }

    /// Makes a volume, or gives the existing one of that name.
    pub async fn create(&self, spec: VolumeSpec) -> Result<Volume> {
        self.create_for(spec, None).await
    }

    /// As [`Self::create`] and [`Self::reference`] in one: no prune can come between.
    pub async fn create_referenced(&self, spec: VolumeSpec, container_id: &str) -> Result<Volume> {
        self.create_for(spec, Some(container_id)).await
    }

    async fn create_for(&self, spec: VolumeSpec, container_id: Option<&str>) -> Result<Volume> {
        let VolumeSpec { mut name, driver, options, mut labels } = spec;
        if name.is_empty() {
            name = random_name()?;
            labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
        }
        check(&name, &driver, &options)?;
        if let Some(volume) = self.existing(&name, container_id) {
            return Ok(volume);
        }
        let store = self.clone();
        let saved = Saved { created_at: crate::image::now(), labels, options };
        let path_name = name.clone();
        let for_disk = saved.clone();
        // The directory comes first; that it is a volume is said under the lock, so that of two makers one wins.
        let made = blocking(move || store.make(&path_name, &for_disk)).await;
        let volume = {
            let mut volumes = self.volumes();
            if let Err(error) = made
                && !volumes.contains_key(&name)
                && !self.data_dir(&name).is_dir()
            {
                return Err(error);
            }
            let entry = volumes.entry(name.clone()).or_insert_with(|| Entry::new(saved));
            entry.references.extend(container_id.map(str::to_owned));
            self.volume(&name, entry)
        };
        self.emit("create", &name, BTreeMap::new());
        Ok(volume)
    }

    fn existing(&self, name: &str, container_id: Option<&str>) -> Option<Volume> {
        let mut volumes = self.volumes();
        let entry = volumes.get_mut(name)?;
        entry.references.extend(container_id.map(str::to_owned));
        let entry = entry.clone();
        Some(self.volume(name, &entry))
    }

    fn make(&self, name: &str, saved: &Saved) -> Result<()> {
        let scratch = self.inner.root.join(SCRATCH).join(random_name()?);
        let data = scratch.join(DATA);
        fs::create_dir_all(&data).map_err(VolumeError::io("create", &data))?;
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o701))
            .and_then(|()| fs::set_permissions(&data, fs::Permissions::from_mode(0o755)))
            .map_err(VolumeError::io("change the mode of", &data))?;
        let text = serde_json::to_vec(saved).map_err(|error| VolumeError::Internal(error.to_string()))?;
        let description = scratch.join(DESCRIPTION);
        write_atomic(&description, &text).map_err(VolumeError::io("write", description))?;
        let path = self.inner.root.join(name);
        fs::rename(&scratch, &path).map_err(|error| {
            let _ = fs::remove_dir_all(&scratch);
            VolumeError::io("create", path)(error)
        })
    }

    pub fn inspect(&self, name: &str) -> Result<Volume> {
        let entry = self.entry(name)?;
        Ok(self.volume(name, &entry))
    }

    fn entry(&self, name: &str) -> Result<Entry> {
        self.volumes().get(name).cloned().ok_or_else(|| VolumeError::NoSuchVolume(name.to_owned()))
    }

    /// Filters: dangling, name, label, driver.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Volume>> {
        let filter = Filter::new(filters, &LIST_FILTERS).map_err(VolumeError::Invalid)?;
        let dangling = match filter.values("dangling") {
            [] => None,
            _ => Some(filter.flag("dangling", false).map_err(VolumeError::Invalid)?),
        };
        let any = |key: &str, matches: &dyn Fn(&str) -> bool| {
            filter.values(key).is_empty() || filter.values(key).iter().any(|value| matches(value))
        };
        let volumes = self.volumes();
        let found = volumes.iter().filter(|(name, entry)| {
            dangling.is_none_or(|wanted| wanted == entry.references.is_empty())
                && any("name", &|part| name.contains(part))
                && any("driver", &|driver| driver == DRIVER)
                && filter.labels_match(&entry.saved.labels)
        });
        Ok(found.map(|(name, entry)| self.volume(name, entry)).collect())
    }

    /// With `force`, a volume that is not there is fine.
    pub async fn remove(&self, name: &str, force: bool) -> Result<()> {
        let entry = match self.entry(name) {
            Err(VolumeError::NoSuchVolume(_)) if force => return Ok(()),
            found => found?,
        };
        let _alone = entry.busy.lock().await;
        let removed = {
            let mut volumes = self.volumes();
            match volumes.get(name) {
                None => return Ok(()),
                Some(entry) if !entry.references.is_empty() || !entry.mounts.is_empty() => {
                    let containers = entry.references.union(&entry.mounts).cloned().collect();
                    return Err(VolumeError::InUse { name: name.to_owned(), containers });
                }
                Some(_) => volumes.remove(name),
            }
        };
        let Some(removed) = removed else { return Ok(()) };
        let store = self.clone();
        let (options, path_name) = (removed.saved.options.clone(), name.to_owned());
        let outcome = blocking(move || store.remove_files(&path_name, &options)).await;
        if let Err(error) = outcome {
            // Still there, so still a volume.
            self.volumes().entry(name.to_owned()).or_insert(removed);
            return Err(error);
        }
        self.emit("destroy", name, BTreeMap::new());
        Ok(())
    }

    fn remove_files(&self, name: &str, options: &BTreeMap<String, String>) -> Result<()> {
        let data = self.data_dir(name);
        local::unmount_options(options, &data)?;
        if local::is_mount_point(&data) {
            // Whatever that is, it is not ours to delete.
            return Err(VolumeError::Conflict(format!(
                "remove {name}: something else is mounted on {}",
                data.display()
            )));
        }
        let path = self.inner.root.join(name);
        let scratch = self.inner.root.join(SCRATCH).join(random_name()?);
        fs::rename(&path, &scratch).map_err(VolumeError::io("remove", &path))?;
        if let Err(error) = fs::remove_dir_all(&scratch) {
            tracing::warn!(volume = name, %error, "files of a removed volume are left until the next start");
        }
        Ok(())
    }

    /// Removes what no container references: anonymous volumes, with `all=true` named ones too. Filters: all, label, label!.
    pub async fn prune(&self, filters: &Filters) -> Result<VolumePruneReport> {
        let filter = Filter::new(filters, &PRUNE_FILTERS).map_err(VolumeError::Invalid)?;
        let all = filter.flag("all", false).map_err(VolumeError::Invalid)?;
        let candidates: Vec<String> = {
            let volumes = self.volumes();
            let unused = |entry: &Entry| {
                let labels: &Labels = &entry.saved.labels;
                entry.references.is_empty()
                    && (all || labels.contains_key(ANONYMOUS_LABEL))
                    && filter.labels_match(labels)
            };
            volumes.iter().filter(|(_, entry)| unused(entry)).map(|(name, _)| name.clone()).collect()
        };
        let mut report = VolumePruneReport::default();
        for name in candidates {
            let size = self.usage(&name).await.map_or(0, |usage| usage.size_bytes);
            match self.remove(&name, false).await {
                Ok(()) => {
                    report.deleted.push(name);
                    report.reclaimed_bytes += size;
                }
                Err(error) => tracing::warn!(volume = name, %error, "volume not pruned"),
            }
        }
        let attributes = BTreeMap::from([("reclaimed".to_owned(), report.reclaimed_bytes.to_string())]);
        let event = ObjectEvent { kind: ObjectKind::Volume, action: "prune", id: String::new(), attributes };
        (self.inner.events)(event);
        Ok(report)
    }

    /// The container has this volume from now on (create, and adoption after a restart). In memory; quick.
    pub fn reference(&self, name: &str, container_id: &str) -> Result<()> {
        match self.volumes().get_mut(name) {
            Some(entry) => {
                entry.references.insert(container_id.to_owned());
                Ok(())
            }
            None => Err(VolumeError::NoSuchVolume(name.to_owned())),
        }
    }

    /// The container is removed: forgets all its references.
    pub fn dereference(&self, container_id: &str) {
        for entry in self.volumes().values_mut() {
            entry.references.remove(container_id);
            entry.mounts.remove(container_id);
        }
    }

    /// Volumes a container references, for `docker rm -v`.
    pub fn referenced_by(&self, container_id: &str) -> Vec<Volume> {
        let volumes = self.volumes();
        let has = volumes.iter().filter(|(_, entry)| entry.references.contains(container_id));
        has.map(|(name, entry)| self.volume(name, entry)).collect()
    }

    /// Makes the volume ready for a starting container and gives the directory to bind. If it is empty and `populate` is
    /// given, the image's content there is copied in first (Docker's copy-up; not with `nocopy`). May be repeated.
    pub async fn mount(&self, name: &str, container_id: &str, populate: Option<Populate>) -> Result<PathBuf> {
        let entry = self.entry(name)?;
        let _alone = entry.busy.lock().await;
        let data = self.data_dir(name);
        if !entry.saved.options.is_empty() || populate.is_some() {
            let (options, target) = (entry.saved.options.clone(), data.clone());
            blocking(move || {
                local::mount_options(&options, &target)?;
                match populate {
                    Some(populate) => fill(&populate, &target),
                    None => Ok(()),
                }
            })
            .await?;
        }
        match self.volumes().get_mut(name) {
            Some(entry) => entry.mounts.insert(container_id.to_owned()),
            None => return Err(VolumeError::NoSuchVolume(name.to_owned())),
        };
        self.emit("mount", name, BTreeMap::from([("container".to_owned(), container_id.to_owned())]));
        Ok(data)
    }

    /// The container stopped.
    pub async fn unmount(&self, name: &str, container_id: &str) -> Result<()> {
        let Ok(entry) = self.entry(name) else { return Ok(()) };
        let _alone = entry.busy.lock().await;
        let (was, last) = match self.volumes().get_mut(name) {
            Some(entry) => (entry.mounts.remove(container_id), entry.mounts.is_empty()),
            None => return Ok(()),
        };
        if last && !entry.saved.options.is_empty() {
            let (options, data) = (entry.saved.options.clone(), self.data_dir(name));
            blocking(move || local::unmount_options(&options, &data)).await?;
        }
        if was {
            self.emit("unmount", name, BTreeMap::from([("container".to_owned(), container_id.to_owned())]));
        }
        Ok(())
    }

    /// Walks the volume: for `docker system df -v`.
    pub async fn usage(&self, name: &str) -> Result<VolumeUsage> {
        let entry = self.entry(name)?;
        let data = self.data_dir(name);
        let size_bytes = blocking(move || copy::size(&data).map_err(VolumeError::io("measure", data))).await?;
        Ok(VolumeUsage { size_bytes, references: entry.references.len() as u64 })
    }

    fn emit(&self, action: &'static str, name: &str, mut attributes: BTreeMap<String, String>) {
        attributes.insert("driver".to_owned(), DRIVER.to_owned());
        let event = ObjectEvent { kind: ObjectKind::Volume, action, id: name.to_owned(), attributes };
        (self.inner.events)(event);
    }
}

/// Copies into a volume that has nothing in it; a copy that fails leaves it empty for the next try.
fn fill(populate: &Populate, data: &Path) -> Result<()> {
    if !copy::is_empty(data).map_err(VolumeError::io("read", data))? {
        return Ok(());
    }
    let copied = copy::populate(populate, data);
    if copied.is_err() {
        for entry in fs::read_dir(data).map_err(VolumeError::io("read", data))?.flatten() {
            let path = entry.path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
    copied.map(drop).map_err(VolumeError::io("copy the image's content to", data))
}

fn check(name: &str, driver: &str, options: &BTreeMap<String, String>) -> Result<()> {
    let invalid = |why: String| Err(VolumeError::Invalid(format!("create {name}: {why}")));
    if !driver.is_empty() && driver != DRIVER {
        return Err(VolumeError::NotFound(format!(
            "create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found"
        )));
    }
    if name.len() == 1 {
        return invalid("volume name is too short, names should be at least two alphanumeric characters".to_owned());
    }
    if !is_name(name) {
        return invalid(format!(
            "{name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. \
             If you intended to pass a host directory, use absolute path"
        ));
    }
    local::validate(options).or_else(|error| invalid(error.to_string()))
}

/// What moby's regular expression `^[a-zA-Z0-9][a-zA-Z0-9_.-]+$` takes, if the file system does.
fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (2..=255).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn random_name() -> Result<String> {
    let mut bytes = [0; 32];
    let source = Path::new("/dev/urandom");
    let read = fs::File::open(source).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes));
    read.map_err(VolumeError::io("read", source))?;
    Ok(hex::encode(bytes))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(VolumeError::Internal(format!("volume work was interrupted: {error}"))),
    }
}

#[cfg(test)]
mod tests;
