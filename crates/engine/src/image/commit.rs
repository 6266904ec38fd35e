//! Images made here: `docker import` from a tar of a root filesystem, `docker commit` from a container's changes.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};

use skep_model::reference::Reference;

use super::archive::BodyReader;
use super::changes;
use super::config::{History, ImageFile, RootFs};
use super::id::ImageId;
use super::layer::Incoming;
use super::pack;
use super::registry::manifest::{host_platform, parse_platform};
use super::state::{Kept, tag_key};
use super::store::{blocking, now, parse_reference};
use super::types::{ByteStream, CommitOptions, ImportOptions};
use super::{ImageError, ImageStore, Result};

impl ImageStore {
    /// Makes an image of one layer from a tar of a root filesystem, plain or compressed.
    pub async fn import(&self, input: ByteStream, options: ImportOptions) -> Result<ImageId> {
        let reference = new_name(options.reference.as_deref())?;
        let platform = parse_platform(options.platform.as_deref())?;
        let mut file = ImageFile {
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            comment: if options.message.is_empty() { "Imported from -".to_owned() } else { options.message.clone() },
            created: now().to_string(),
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() },
            ..ImageFile::default()
        };
        changes::apply(&mut file.config, &options.changes)?;

        let mut reader = BodyReader::new(input);
        let store = self.clone();
        let (layer, _lease) = blocking(move || {
            let scratch = store.inner.layers.scratch()?;
            let path = scratch.join("layer");
            let mut output = File::create(&path).map_err(ImageError::io("create", &path))?;
            io::copy(&mut reader, &mut output).map_err(ImageError::io("receive", &path))?;
            let incoming = Incoming { file: &path, digest: None, diff_id: None };
            store.register_leased(&incoming)
        })
        .await?;
        file.history.push(History {
            created: file.created.clone(),
            comment: file.comment.clone(),
            ..History::default()
        });
        file.rootfs.diff_ids.push(layer);
        let id = self.add_image(to_json(&file)?, Kept::default(), None).await?;
        self.name_new(reference.as_ref(), &id, "import").await?;
        Ok(id)
    }

    /// Makes an image of a container's changes. The caller pauses the container if the copy has to be of one moment.
    pub async fn commit(&self, options: CommitOptions) -> Result<ImageId> {
        let reference = new_name(options.reference.as_deref())?;
        let parent = options.parent.as_ref().map(|id| self.image(id.as_str())).transpose()?;
        let platform = host_platform();
        let below = parent.as_ref().map(|image| (*image.file).clone()).unwrap_or(ImageFile {
            architecture: platform.architecture,
            os: platform.os,
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() },
            ..ImageFile::default()
        });
        let mut file = ImageFile {
            author: options.author,
            comment: options.comment.clone(),
            created: now().to_string(),
            config: options.config,
            ..below
        };
        changes::apply(&mut file.config, &options.changes)?;
        let _below = self.lease(&file.rootfs.diff_ids);

        let store = self.clone();
        let upper = options.upper_dir;
        let (layer, _lease) = blocking(move || {
            let scratch = store.inner.layers.scratch()?;
            let path = scratch.join("layer");
            let output = File::create(&path).map_err(ImageError::io("create", &path))?;
            let mut output = BufWriter::new(output);
            pack::upper_dir(&upper, &mut output)?;
            output.flush().map_err(ImageError::io("write", &path))?;
            store.register_leased(&Incoming { file: &path, digest: None, diff_id: None })
        })
        .await?;
        let command = file.config.cmd.as_ref().map(|cmd| cmd.0.join(" ")).unwrap_or_default();
        file.history.push(History {
            created: file.created.clone(),
            author: file.author.clone(),
            created_by: command,
            comment: options.comment,
            empty_layer: false,
        });
        file.rootfs.diff_ids.push(layer);
        let kept = Kept { parent: options.parent, ..Kept::default() };
        let id = self.add_image(to_json(&file)?, kept, None).await?;
        self.name_new(reference.as_ref(), &id, "commit").await?;
        Ok(id)
    }

    /// A layer of unknown diff id, leased as soon as it is known: an unleased one could be collected at once.
    fn register_leased(&self, incoming: &Incoming<'_>) -> Result<(super::id::DiffId, super::store::Lease)> {
        const ATTEMPTS: usize = 3;
        for _ in 0..ATTEMPTS {
            let layer = self.inner.layers.register(incoming, |_| ())?;
            let lease = self.lease(std::slice::from_ref(&layer.diff_id));
            if self.inner.layers.get(&layer.diff_id).is_some() {
                return Ok((layer.diff_id.clone(), lease));
            }
        }
        Err(ImageError::Internal("the layer was removed while it was made".to_owned()))
    }

    async fn name_new(&self, reference: Option<&Reference>, id: &ImageId, action: &'static str) -> Result<()> {
        if let Some(reference) = reference {
            self.add_tag(reference, id).await?;
            self.emit("tag", id.as_str(), id, &tag_key(reference).familiar());
        }
        if action == "import" {
            self.emit(action, id.as_str(), id, &reference.map_or_else(|| id.to_string(), |r| tag_key(r).familiar()));
        }
        Ok(())
    }
}

fn new_name(text: Option<&str>) -> Result<Option<Reference>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let reference = parse_reference(text)?;
    if reference.digest.is_some() {
        return Err(ImageError::Invalid("cannot import digest reference".to_owned()));
    }
    Ok(Some(reference))
}

fn to_json(file: &ImageFile) -> Result<Vec<u8>> {
    serde_json::to_vec(file).map_err(|error| ImageError::Internal(error.to_string()))
}
