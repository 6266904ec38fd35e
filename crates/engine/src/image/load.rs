//! `docker load`: images out of a `docker save` archive or an OCI layout.

use std::sync::Arc;

use serde::Deserialize;
use skep_model::reference::Reference;
use tokio::runtime::Handle;

use super::archive::{BodyReader, Members};
use super::id::{Digest, ImageId};
use super::layer::Incoming;
use super::progress::{Progress, ProgressSender};
use super::registry::manifest::{Document, Index, host_platform};
use super::state::{Kept, tag_key};
use super::store::{Lease, blocking, now, parse_config};
use super::types::ByteStream;
use super::{ImageError, ImageStore, Result};

/// One entry of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// An image of the archive, wherever it was listed.
struct Found {
    config: Vec<u8>,
    names: Vec<Reference>,
    /// Member names, bottom-most first, with the digest and size that the archive says they have.
    layers: Vec<(String, Option<(Digest, u64)>)>,
    manifest: Option<Vec<u8>>,
}

impl ImageStore {
    /// Reads a `docker save` tar or an OCI layout, plain or compressed.
    pub async fn load(&self, input: ByteStream, progress: ProgressSender) -> Result<Vec<ImageId>> {
        let reader = BodyReader::new(input);
        let scratch = self.inner.layers.scratch()?;
        let members = Arc::new(blocking(move || Members::read(reader, scratch)).await?);
        let found = {
            let members = members.clone();
            blocking(move || find_images(&members)).await?
        };
        let mut ids = Vec::new();
        for image in found {
            let outcome = self.load_one(&members, image, &progress).await;
            if outcome.is_err() {
                self.collect_garbage().await?;
            }
            ids.push(outcome?);
        }
        Ok(ids)
    }

    async fn load_one(&self, members: &Arc<Members>, image: Found, progress: &ProgressSender) -> Result<ImageId> {
        let _lease = self.register_all(members.clone(), &image, progress.clone()).await?;
        let id = self.add_image(image.config, Kept::default(), image.manifest).await?;
        self.emit("load", id.as_str(), &id, id.as_str());
        for name in &image.names {
            let key = tag_key(name);
            let before = self.change(|state| state.name(key.clone(), id.clone(), now())).await?;
            if let Some(old) = before.filter(|old| *old != id) {
                let name = key.familiar();
                let text =
                    format!("The image {name} already exists, renaming the old one with ID {old} to empty string\n");
                progress.send(Progress::stream(text)).await;
            }
            self.emit("tag", id.as_str(), &id, &key.familiar());
            progress.send(Progress::stream(format!("Loaded image: {}\n", key.familiar()))).await;
        }
        if image.names.is_empty() {
            progress.send(Progress::stream(format!("Loaded image ID: {id}\n"))).await;
        }
        Ok(id)
    }

    async fn register_all(&self, members: Arc<Members>, image: &Found, progress: ProgressSender) -> Result<Lease> {
        let diff_ids = parse_config(&image.config)?.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            return Err(ImageError::Invalid(format!(
                "invalid manifest, layers length mismatch: expected {}, got {}",
                image.layers.len(),
                diff_ids.len()
            )));
        }
        let lease = self.lease(&diff_ids);
        let work: Vec<_> = diff_ids.into_iter().zip(image.layers.iter().cloned()).collect();
        let store = self.clone();
        blocking(move || {
            let _in_runtime = Handle::try_current();
            for (diff_id, (name, digest)) in work {
                if store.inner.layers.get(&diff_id).is_some() {
                    continue;
                }
                let file = members.need(&name)?;
                let total = std::fs::metadata(file).map_err(ImageError::io("read", file))?.len();
                let short = diff_id.short().to_owned();
                let mut shown = 0;
                let incoming = Incoming { file, digest, diff_id: Some(diff_id) };
                store.inner.layers.register(&incoming, |done| {
                    if done == total || done - shown > PROGRESS_STEP_BYTES {
                        shown = done;
                        progress.offer(Progress::transfer(&short, "Loading layer", done, total));
                    }
                })?;
            }
            Ok(())
        })
        .await?;
        Ok(lease)
    }
}

const PROGRESS_STEP_BYTES: u64 = 512 * 1024;

fn find_images(members: &Members) -> Result<Vec<Found>> {
    if members.file("manifest.json").is_some() {
        return members
            .json::<Vec<Listed>>("manifest.json")?
            .into_iter()
            .map(|listed| from_list(members, listed))
            .collect();
    }
    if members.file("index.json").is_some() {
        return from_layout(members);
    }
    Err(ImageError::Invalid(
        "invalid archive: it has neither manifest.json (docker save) nor index.json (OCI layout)".to_owned(),
    ))
}

fn from_list(members: &Members, listed: Listed) -> Result<Found> {
    let mut names = Vec::new();
    for tag in listed.repo_tags.unwrap_or_default() {
        names.push(tag.parse::<Reference>().map_err(|e| ImageError::Invalid(format!("invalid tag {tag:?}: {e}")))?);
    }
    Ok(Found {
        config: members.bytes(&listed.config)?,
        names,
        layers: listed.layers.unwrap_or_default().into_iter().map(|name| (name, None)).collect(),
        manifest: None,
    })
}

fn from_layout(members: &Members) -> Result<Vec<Found>> {
    let top: Index = members.json("index.json")?;
    let mut found: Vec<Found> = Vec::new();
    for descriptor in &top.manifests {
        let annotation = |key: &str| descriptor.annotations.as_ref().and_then(|a| a.get(key));
        let name = annotation("io.containerd.image.name")
            .or_else(|| annotation("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/'])));
        let name = name.and_then(|name| name.parse::<Reference>().ok());
        let mut bytes = blob(members, &descriptor.digest)?;
        let mut document = Document::parse(&bytes)?;
        if let Document::Index(index) = &document {
            let Some(chosen) = index.choose(&host_platform()) else { continue };
            bytes = blob(members, &chosen.digest)?;
            document = Document::parse(&bytes)?;
        }
        let Document::Manifest(manifest) = document else {
            return Err(ImageError::Invalid("invalid archive: an index inside an index".to_owned()));
        };
        let layers = manifest.layers.iter().map(|l| (blob_name(&l.digest), Some((l.digest.clone(), l.size))));
        let image = Found {
            config: blob(members, &manifest.config.digest)?,
            names: name.into_iter().collect(),
            layers: layers.collect(),
            manifest: None,
        };
        match found.iter_mut().find(|other| other.config == image.config) {
            Some(other) => other.names.extend(image.names),
            None => found.push(Found { manifest: Some(bytes), ..image }),
        }
    }
    if found.is_empty() {
        return Err(ImageError::Invalid("invalid archive: it has no image for this platform".to_owned()));
    }
    for image in &found {
        for (name, digest) in &image.layers {
            verify(members, name, digest.as_ref())?;
        }
    }
    Ok(found)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn blob(members: &Members, digest: &Digest) -> Result<Vec<u8>> {
    let bytes = members.bytes(&blob_name(digest))?;
    let actual = Digest::of(&bytes);
    if actual == *digest {
        Ok(bytes)
    } else {
        Err(ImageError::DigestMismatch { expected: digest.to_string(), actual: actual.to_string() })
    }
}

fn verify(members: &Members, name: &str, digest: Option<&(Digest, u64)>) -> Result<()> {
    let Some((expected, _)) = digest else { return Ok(()) };
    let path = members.need(name)?;
    let (actual, _) = super::layer::digest_of(path)?;
    if actual == *expected {
        Ok(())
    } else {
        Err(ImageError::DigestMismatch { expected: expected.to_string(), actual: actual.to_string() })
    }
}
