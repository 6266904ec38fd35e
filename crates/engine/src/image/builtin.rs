//! The built-in image: this very binary as an image, so that a swarm has something to run without a registry.
//!
//! The same binary gives the same image id on every host: the layer's tar and the config are made of nothing but its bytes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use skep_model::container::{ContainerConfig, Empty, StringOrList};
use skep_model::reference::Reference;

use super::config::{History, ImageFile, RootFs};
use super::disk::write_atomic;
use super::id::{DiffId, ImageId};
use super::layer::Source;
use super::registry::manifest::host_platform;
use super::state::{Kept, tag_key};
use super::store::{blocking, parse_reference};
use super::{ImageError, ImageStore, Result};

const FILE: &str = "skep";
/// A fixed instant: the image is as old as nothing in particular.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// The name the binary is an image under, and the binary.
#[derive(Debug)]
pub(super) struct Builtin {
    name: Reference,
    exe: PathBuf,
}

/// Which file the layer was made of last, so that it is hashed once and not at every start.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    diff_id: DiffId,
}

impl ImageStore {
    /// Makes sure that `name` is an image whose only file is the binary at `exe`. From then on a pull of `name` makes it
    /// again if it was removed, and no prune takes it.
    pub async fn ensure_builtin(&self, name: &str, exe: &Path) -> Result<ImageId> {
        let reference = parse_reference(name)?;
        let exe = fs::canonicalize(exe).map_err(ImageError::io("find", exe))?;
        let id = self.make_builtin(&reference, exe.clone()).await?;
        let mut builtin = self.inner.builtin.lock().unwrap_or_else(PoisonError::into_inner);
        *builtin = Some(Builtin { name: tag_key(&reference), exe });
        Ok(id)
    }

    /// Whether a reference names the built-in image.
    pub(super) fn is_builtin(&self, reference: &Reference) -> bool {
        let builtin = self.inner.builtin.lock().unwrap_or_else(PoisonError::into_inner);
        reference.digest.is_none() && builtin.as_ref().is_some_and(|builtin| builtin.name == tag_key(reference))
    }

    /// What a pull of its name does: the image, and whether it had to be made.
    pub(super) async fn remake_builtin(&self, reference: &Reference) -> Result<(ImageId, bool)> {
        let there = self.state().named(&tag_key(reference)).cloned();
        if let Some(id) = there {
            return Ok((id, false));
        }
        let exe = {
            let builtin = self.inner.builtin.lock().unwrap_or_else(PoisonError::into_inner);
            builtin.as_ref().map(|builtin| builtin.exe.clone())
        };
        let exe = exe.ok_or_else(|| ImageError::NoSuchImage(reference.familiar()))?;
        Ok((self.make_builtin(reference, exe).await?, true))
    }

    async fn make_builtin(&self, reference: &Reference, exe: PathBuf) -> Result<ImageId> {
        let store = self.clone();
        let (diff_id, _lease) = blocking(move || store.builtin_layer(&exe)).await?;
        let raw = serde_json::to_vec(&config(diff_id)).map_err(|error| ImageError::Internal(error.to_string()))?;
        let id = super::id::Digest::of(&raw);
        if self.state().named(&tag_key(reference)) == Some(&id) {
            return Ok(id);
        }
        self.add_image(raw, Kept::default(), None).await?;
        let before =
            self.change(|state| state.name(tag_key(reference), id.clone(), skep_model::Timestamp::ZERO)).await?;
        if let Some(before) = before.filter(|before| *before != id) {
            self.drop_replaced(&before).await?;
        }
        Ok(id)
    }

    /// The built-in image of another binary: it goes unless someone gave it a name or a container has its layers.
    async fn drop_replaced(&self, id: &ImageId) -> Result<()> {
        if self.state().names_of(id).next().is_none() {
            self.change(|state| state.retire(id)).await?;
            self.collect_garbage().await?;
        }
        Ok(())
    }

    fn builtin_layer(&self, exe: &Path) -> Result<(DiffId, super::store::Lease)> {
        let note = self.builtin_note();
        let meta = fs::metadata(exe).map_err(ImageError::io("read", exe))?;
        let is = |made: &Made| {
            (made.device, made.inode, made.size, made.modified)
                == (meta.dev(), meta.ino(), meta.len(), (meta.mtime(), meta.mtime_nsec()))
        };
        let before = fs::read(&note).ok().and_then(|text| serde_json::from_slice::<Made>(&text).ok());
        if let Some(before) = before.filter(is) {
            let lease = self.lease(std::slice::from_ref(&before.diff_id));
            if self.inner.layers.get(&before.diff_id).is_some() {
                return Ok((before.diff_id, lease));
            }
        }
        self.drop_overwritten(&meta)?;
        // A link shares the inode, so owner and mode have to be what the tar says.
        let link = meta.uid() == 0 && meta.gid() == 0 && meta.mode() & 0o7777 == 0o755;
        let layer = self.inner.layers.register_single_file(FILE, exe, link)?;
        let lease = self.lease(std::slice::from_ref(&layer.diff_id));
        let made = Made {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            diff_id: layer.diff_id.clone(),
        };
        let text = serde_json::to_vec(&made).map_err(|error| ImageError::Internal(error.to_string()))?;
        write_atomic(&note, &text).map_err(ImageError::io("write", note))?;
        Ok((layer.diff_id.clone(), lease))
    }

    fn builtin_note(&self) -> PathBuf {
        self.config().data_root.join("images").join("builtin.json")
    }

    /// A binary that was written over in place changed a layer linked to it: that layer is no longer what it is named by.
    fn drop_overwritten(&self, exe: &fs::Metadata) -> Result<()> {
        let layers = &self.inner.layers;
        let linked = |diff_id: &DiffId| {
            let Some(layer) = layers.get(diff_id) else { return false };
            let Source::SingleFile { name } = &layer.source else { return false };
            fs::metadata(layers.diff_dir(diff_id).join(name))
                .is_ok_and(|file| (file.dev(), file.ino()) == (exe.dev(), exe.ino()))
        };
        let overwritten: Vec<DiffId> = layers.ids().into_iter().filter(linked).collect();
        layers.unlist(|diff_id| overwritten.contains(diff_id)).map(drop)
    }
}

fn config(diff_id: DiffId) -> ImageFile {
    let platform = host_platform();
    let label = |key: &str, value: &str| (format!("org.opencontainers.image.{key}"), value.to_owned());
    ImageFile {
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant,
        created: CREATED.to_owned(),
        config: ContainerConfig {
            entrypoint: Some(StringOrList(vec![format!("/{FILE}"), "whoami".to_owned()])),
            env: vec!["PATH=/".to_owned()],
            exposed_ports: BTreeMap::from([("80/tcp".to_owned(), Empty {})]),
            labels: BTreeMap::from([
                label("title", "whoami"),
                label("description", "An HTTP server that tells who answers; part of skep"),
                ("skep.builtin".to_owned(), "true".to_owned()),
            ]),
            working_dir: "/".to_owned(),
            ..ContainerConfig::default()
        },
        history: vec![History {
            created: CREATED.to_owned(),
            created_by: "skep".to_owned(),
            comment: "built into the binary".to_owned(),
            ..History::default()
        }],
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id] },
        ..ImageFile::default()
    }
}
