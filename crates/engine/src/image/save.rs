//! `docker save`: an archive that `docker load` of any version reads, and that is an OCI layout too (moby 25 and later).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use serde::Serialize;
use skep_model::reference::Reference;

use super::archive::BodyWriter;
use super::compress::Compression;
use super::id::{Digest, ImageId};
use super::layer::Layer;
use super::registry::manifest::{self, Descriptor, Index, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use super::state::{Image, tag_key};
use super::types::ByteStream;
use super::{ImageError, ImageStore, Result};

/// One entry of `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// A `docker save` tar of the named images. A name without a tag means all tags of the repository. Names are checked
    /// before this returns.
    pub async fn save(&self, names: &[String]) -> Result<ByteStream> {
        let mut wanted: BTreeMap<ImageId, BTreeSet<Reference>> = BTreeMap::new();
        for name in names {
            for (id, reference) in self.named(name)? {
                wanted.entry(id).or_default().extend(reference);
            }
        }
        let mut images = Vec::new();
        let mut leases = Vec::new();
        for (id, references) in wanted {
            let image = self.image(id.as_str())?;
            leases.push(self.lease(&image.file.rootfs.diff_ids));
            let raw = self.raw_config(&id)?;
            self.emit("save", id.as_str(), &id, id.as_str());
            images.push((image, raw, references));
        }
        let (mut writer, stream) = BodyWriter::channel();
        let store = self.clone();
        // Ends by itself when the reader goes: the next write fails.
        tokio::task::spawn_blocking(move || {
            let outcome = store.write_archive(&images, &mut writer);
            drop(leases);
            match outcome {
                Ok(()) => drop(writer.flush()),
                Err(error) => writer.fail(&error),
            }
        });
        Ok(stream)
    }

    /// The images a name of `docker save` stands for, with the tags to note.
    fn named(&self, name: &str) -> Result<Vec<(ImageId, Option<Reference>)>> {
        let id = self.resolve(name);
        let Ok(reference) = name.parse::<Reference>() else { return Ok(vec![(id?, None)]) };
        let state = self.state();
        if reference.tag.is_none() && reference.digest.is_none() {
            let tags = state.tags_in(&reference).filter_map(|tag| Some((state.named(tag)?.clone(), Some(tag.clone()))));
            let tags: Vec<_> = tags.collect();
            if !tags.is_empty() {
                return Ok(tags);
            }
        }
        let key = tag_key(&reference);
        let tagged = reference.digest.is_none() && state.named(&key).is_some();
        Ok(vec![(id?, tagged.then_some(key))])
    }

    fn write_archive(&self, images: &[(Image, Vec<u8>, BTreeSet<Reference>)], output: &mut BodyWriter) -> Result<()> {
        let mut archive = Archive { builder: tar::Builder::new(output), written: BTreeSet::new() };
        let mut listed = Vec::new();
        let mut index = Index { schema_version: 2, media_type: Some(OCI_INDEX.to_owned()), manifests: Vec::new() };
        for (image, raw, references) in images {
            let mut layers = Vec::new();
            for diff_id in &image.file.rootfs.diff_ids {
                let layer = self.inner.layers.need(diff_id)?;
                archive.layer(self, &layer)?;
                layers.push(Descriptor::new(
                    &manifest::layer_type(Compression::None),
                    diff_id.clone(),
                    layer.tar_bytes,
                ));
            }
            let config = archive.blob(raw)?;
            let config = Descriptor::new(OCI_CONFIG, config, raw.len() as u64);
            listed.push(Listed {
                config: blob_name(&config.digest),
                repo_tags: (!references.is_empty()).then(|| references.iter().map(Reference::familiar).collect()),
                layers: layers.iter().map(|layer| blob_name(&layer.digest)).collect(),
            });
            let manifest =
                manifest::Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.to_owned()), config, layers };
            let manifest = json(&manifest)?;
            let descriptor = Descriptor::new(OCI_MANIFEST, archive.blob(&manifest)?, manifest.len() as u64);
            index.manifests.extend(described(&descriptor, references));
        }
        archive.file("index.json", &json(&index)?)?;
        archive.file("manifest.json", &json(&listed)?)?;
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.builder.finish().map_err(ImageError::io("write", "the archive"))
    }
}

/// One descriptor a name, or one without a name.
fn described(descriptor: &Descriptor, references: &BTreeSet<Reference>) -> Vec<Descriptor> {
    if references.is_empty() {
        return vec![descriptor.clone()];
    }
    let annotated = references.iter().map(|reference| {
        let annotations = BTreeMap::from([
            ("io.containerd.image.name".to_owned(), reference.to_string()),
            ("org.opencontainers.image.ref.name".to_owned(), reference.tag.clone().unwrap_or_default()),
        ]);
        Descriptor { annotations: Some(annotations), ..descriptor.clone() }
    });
    annotated.collect()
}

struct Archive<W: Write> {
    builder: tar::Builder<W>,
    written: BTreeSet<Digest>,
}

impl<W: Write> Archive<W> {
    fn append(&mut self, name: &str, size: u64, data: impl Read) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        // A fixed time, so that the same images make the same archive.
        header.set_mtime(0);
        self.builder.append_data(&mut header, name, data).map_err(ImageError::io("write", "the archive"))
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.append(name, bytes.len() as u64, bytes)
    }

    fn blob(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.written.insert(digest.clone()) {
            self.file(&blob_name(&digest), bytes)?;
        }
        Ok(digest)
    }

    fn layer(&mut self, store: &ImageStore, layer: &Layer) -> Result<()> {
        if !self.written.insert(layer.diff_id.clone()) {
            return Ok(());
        }
        let tar = store.inner.layers.tar(layer)?;
        self.append(&blob_name(&layer.diff_id), layer.tar_bytes, tar.take(layer.tar_bytes))
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| ImageError::Internal(error.to_string()))
}
