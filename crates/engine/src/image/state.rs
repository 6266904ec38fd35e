//! The image database as a value: images, names, and who needs which layer.
//!
//! Decides nothing about disks or registries; the store keeps one of these under a lock and writes it out after each change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skep_model::Timestamp;
use skep_model::reference::Reference;

use super::config::ImageFile;
use super::id::{DiffId, Digest, ImageId};

/// An image that is there with all its layers.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) id: ImageId,
    pub(super) file: Arc<ImageFile>,
    pub(super) size_bytes: u64,
    pub(super) kept: Kept,
}

/// What is not in the config and must be remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    /// The image it was committed from, on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<ImageId>,
    /// The manifest a registry gave for it: pushed again byte for byte, so that its digest stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) manifest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_tagged: Option<Timestamp>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    images: BTreeMap<ImageId, Image>,
    /// Whole normalised references, by tag or by digest.
    references: BTreeMap<Reference, ImageId>,
    /// Layers of images that were removed while a container still needed them.
    orphans: BTreeMap<ImageId, Vec<DiffId>>,
    /// Containers and their layers; told by the engine.
    holds: BTreeMap<String, (ImageId, Vec<DiffId>)>,
    /// Layers that an operation under way is about to need.
    leases: BTreeMap<DiffId, usize>,
    /// Whether the engine has told all holds since the start.
    told: bool,
}

/// `images/state.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Saved {
    pub(super) version: u32,
    pub(super) images: BTreeMap<ImageId, Kept>,
    pub(super) references: BTreeMap<String, ImageId>,
    pub(super) orphans: BTreeMap<ImageId, Vec<DiffId>>,
}

pub(super) const VERSION: u32 = 1;

impl State {
    /// Takes up what was saved; names of images that could not be read are dropped with them.
    pub(super) fn restore(images: Vec<Image>, saved: &Saved) -> Self {
        let images: BTreeMap<ImageId, Image> = images.into_iter().map(|image| (image.id.clone(), image)).collect();
        let references = saved.references.iter().filter(|(_, id)| images.contains_key(*id));
        let references = references.filter_map(|(name, id)| Some((name.parse().ok()?, id.clone()))).collect();
        Self { references, orphans: saved.orphans.clone(), images, ..Self::default() }
    }

    pub(super) fn saved(&self) -> Saved {
        Saved {
            version: VERSION,
            images: self.images.values().map(|image| (image.id.clone(), image.kept.clone())).collect(),
            references: self.references.iter().map(|(name, id)| (name.to_string(), id.clone())).collect(),
            orphans: self.orphans.clone(),
        }
    }

    pub(super) fn image(&self, id: &ImageId) -> Option<&Image> {
        self.images.get(id)
    }

    pub(super) fn images(&self) -> impl Iterator<Item = &Image> {
        self.images.values()
    }

    /// Adds an image, or keeps the one that is there with what it remembers.
    pub(super) fn add(&mut self, image: Image) {
        match self.images.get_mut(&image.id) {
            Some(there) => {
                there.kept.manifest = image.kept.manifest.or(there.kept.manifest.take());
            }
            None => {
                self.images.insert(image.id.clone(), image);
            }
        }
    }

    pub(super) fn delete(&mut self, id: &ImageId) -> Option<Image> {
        let image = self.images.remove(id)?;
        if self.holds.values().any(|(held, _)| held == id) {
            self.orphans.insert(id.clone(), image.file.rootfs.diff_ids.clone());
        }
        Some(image)
    }

    /// Deletes an image that another took the place of. Its layers stay if a container has them, and at start until the
    /// engine has told which containers there are.
    pub(super) fn retire(&mut self, id: &ImageId) {
        if let Some(image) = self.delete(id)
            && !self.told
        {
            self.orphans.insert(id.clone(), image.file.rootfs.diff_ids.clone());
        }
    }

    pub(super) fn children<'a>(&'a self, id: &'a ImageId) -> impl Iterator<Item = &'a Image> {
        self.images.values().filter(move |image| image.kept.parent.as_ref() == Some(id))
    }

    /// Points a name (with its tag or digest) at an image; gives what it pointed at before.
    pub(super) fn name(&mut self, reference: Reference, id: ImageId, now: Timestamp) -> Option<ImageId> {
        if reference.digest.is_none()
            && let Some(image) = self.images.get_mut(&id)
        {
            image.kept.last_tagged = Some(now);
        }
        self.references.insert(reference, id)
    }

    pub(super) fn unname(&mut self, reference: &Reference) -> Option<ImageId> {
        self.references.remove(reference)
    }

    pub(super) fn named(&self, reference: &Reference) -> Option<&ImageId> {
        self.references.get(reference)
    }

    /// All names of an image, sorted.
    pub(super) fn names_of<'a>(&'a self, id: &'a ImageId) -> impl Iterator<Item = &'a Reference> {
        self.references.iter().filter(move |(_, named)| *named == id).map(|(reference, _)| reference)
    }

    pub(super) fn tags_in<'a>(&'a self, repository: &'a Reference) -> impl Iterator<Item = &'a Reference> {
        let same = move |r: &&Reference| r.domain == repository.domain && r.path == repository.path && r.tag.is_some();
        self.references.keys().filter(same)
    }

    /// Finds an image by reference, id, or a beginning of an id that only one has.
    pub(super) fn find(&self, text: &str) -> Result<&Image, Lookup> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Some(image) = format!("sha256:{hex}").parse::<Digest>().ok().and_then(|id| self.images.get(&id)) {
            return Ok(image);
        }
        // A name wins over the beginning of an id, as in moby.
        let parsed = text.parse::<Reference>();
        if let Ok(reference) = &parsed
            && let Some(image) = self.lookup_keys(reference).iter().find_map(|key| self.references.get(key))
        {
            return self.images.get(image).ok_or_else(|| Lookup::Missing(reference.familiar()));
        }
        if !hex.is_empty() && hex.len() <= 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            let mut matching = self.images.values().filter(|image| image.id.hex().starts_with(hex));
            if let (Some(image), None) = (matching.next(), matching.next()) {
                return Ok(image);
            }
        }
        match parsed {
            Ok(reference) => Err(Lookup::Missing(reference.familiar())),
            Err(_) if text.starts_with("sha256:") || hex.len() == 64 => Err(Lookup::Missing(text.to_owned())),
            Err(error) => Err(Lookup::Invalid(error)),
        }
    }

    /// Under which keys a user's reference may be found: a tag together with a digest means the digest.
    fn lookup_keys(&self, reference: &Reference) -> Vec<Reference> {
        let bare = Reference { tag: None, digest: None, ..reference.clone() };
        match (&reference.digest, reference.tag_or_latest()) {
            (Some(_), _) => vec![Reference { digest: reference.digest.clone(), ..bare }],
            (None, tag) => vec![Reference { tag: tag.map(str::to_owned), ..bare }],
        }
    }

    pub(super) fn hold(&mut self, container_id: &str, id: &ImageId) -> Option<Vec<DiffId>> {
        let diff_ids = match self.images.get(id) {
            Some(image) => image.file.rootfs.diff_ids.clone(),
            None => self.orphans.get(id)?.clone(),
        };
        self.holds.insert(container_id.to_owned(), (id.clone(), diff_ids.clone()));
        Some(diff_ids)
    }

    pub(super) fn release(&mut self, container_id: &str) {
        self.holds.remove(container_id);
        if self.told {
            self.drop_orphans();
        }
    }

    /// All holds have been told: from now on an orphan that nobody holds is not needed.
    pub(super) fn drop_orphans(&mut self) {
        self.told = true;
        let held: BTreeSet<&ImageId> = self.holds.values().map(|(id, _)| id).collect();
        self.orphans.retain(|id, _| held.contains(id));
    }

    pub(super) fn lease(&mut self, diff_ids: &[DiffId]) {
        for diff_id in diff_ids {
            *self.leases.entry(diff_id.clone()).or_default() += 1;
        }
    }

    pub(super) fn end_lease(&mut self, diff_ids: &[DiffId]) {
        for diff_id in diff_ids {
            if let Some(count) = self.leases.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    self.leases.remove(diff_id);
                }
            }
        }
    }

    /// Every layer that must stay.
    pub(super) fn needed_layers(&self) -> BTreeSet<DiffId> {
        let images = self.images.values().flat_map(|image| &image.file.rootfs.diff_ids);
        let orphans = self.orphans.values().flatten();
        let holds = self.holds.values().flat_map(|(_, diff_ids)| diff_ids);
        images.chain(orphans).chain(holds).chain(self.leases.keys()).cloned().collect()
    }

    pub(super) fn manifests(&self) -> BTreeSet<Digest> {
        self.images.values().filter_map(|image| image.kept.manifest.clone()).collect()
    }
}

/// Why a text names no image here.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The text as Docker repeats it: a name with its implied tag.
    Missing(String),
    Invalid(skep_model::reference::InvalidReference),
}

/// The reference under which a tag is kept.
pub(super) fn tag_key(reference: &Reference) -> Reference {
    Reference {
        tag: Some(reference.tag.clone().unwrap_or_else(|| "latest".to_owned())),
        digest: None,
        ..reference.clone()
    }
}

/// The reference under which a manifest digest is kept.
pub(super) fn digest_key(reference: &Reference, digest: &Digest) -> Reference {
    Reference { tag: None, digest: Some(digest.to_string()), ..reference.clone() }
}
