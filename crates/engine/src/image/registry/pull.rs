//! Pull: manifest, config, then the missing layers, a few at a time. Nothing is named until everything is there and true.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use sha2::{Digest as _, Sha256};
use skep_model::reference::Reference;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _, BufWriter};

use super::manifest::{Descriptor, Document, Manifest, parse_platform};
use super::session::{Fetched, Session, next_chunk};
use crate::image::disk::Scratch;
use crate::image::id::{DiffId, Digest, ImageId};
use crate::image::layer::Incoming;
use crate::image::progress::{Progress, ProgressSender};
use crate::image::state::{Kept, digest_key, tag_key};
use crate::image::store::{blocking, now, parse_config, parse_reference};
use crate::image::types::{Platform, PullOptions};
use crate::image::{ImageError, ImageStore, Result};

/// How often a broken download is taken up again without getting any further.
const RESUMES: u32 = 5;
const RESUME_DELAY: Duration = Duration::from_millis(300);
/// How often a transfer tells where it is.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
const WRITE_BUFFER_BYTES: usize = 1024 * 1024;

impl ImageStore {
    /// Fetches an image. An error before the first progress item is the request's status; a later one is the stream's last
    /// line. Two pulls of one reference wait for each other and fetch once. Dropping the future stops it without traces.
    pub async fn pull(&self, reference: &str, options: PullOptions, progress: ProgressSender) -> Result<ImageId> {
        let reference = parse_reference(reference)?;
        let wanted = parse_platform(options.platform.as_deref())?;
        let lock = self.inner.registries.lock(&format!("pull {reference}"));
        let _alone = lock.lock().await;
        if self.is_builtin(&reference) {
            let (id, made) = self.remake_builtin(&reference).await?;
            progress.send(Progress::about("latest", format!("Pulling from {}", shown_path(&reference)))).await;
            progress.send(status(&reference, made)).await;
            return Ok(id);
        }
        let by = reference.digest.clone().or_else(|| reference.tag_or_latest().map(str::to_owned)).unwrap_or_default();
        let registries = &self.inner.registries;
        let (session, top) = Session::find(registries, &reference, options.auth.as_ref(), &by).await?;
        progress.send(Progress::about(&by, format!("Pulling from {}", shown_path(&reference)))).await;

        let outcome = self.fetch(&session, &reference, &top, &wanted, &progress).await;
        if outcome.is_err() {
            self.collect_garbage().await?;
        }
        let id = outcome?;
        let updated = self.take_names(&reference, &top.digest, &id).await?;
        progress.send(Progress::message(format!("Digest: {}", top.digest))).await;
        progress.send(status(&reference, updated)).await;
        let name = reference.familiar();
        self.emit("pull", &name, &id, &reference.familiar_name());
        Ok(id)
    }

    /// Everything the manifest speaks of; then the image is known here, still without a name.
    async fn fetch(
        &self,
        session: &Session,
        reference: &Reference,
        top: &Fetched,
        wanted: &Platform,
        progress: &ProgressSender,
    ) -> Result<ImageId> {
        let (manifest, bytes) = choose(session, reference, top, wanted).await?;
        let id = manifest.config.digest.clone();
        let known = self.state().image(&id).map(|image| image.file.clone());
        let (file, raw) = match known {
            Some(file) => (file, self.raw_config(&id)?),
            None => {
                let raw = session.small_blob(&id).await?;
                (Arc::new(parse_config(&raw)?), raw)
            }
        };
        if !file.os.is_empty() && file.os != "linux" {
            return Err(ImageError::Registry(format!(
                "image operating system {:?} cannot be used on this platform",
                file.os
            )));
        }
        let diff_ids = &file.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::Registry(format!(
                "layers from manifest don't match image configuration: {} layers, {} diff ids",
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        let _lease = self.lease(diff_ids);
        let mut missing = Vec::new();
        for (descriptor, diff_id) in manifest.layers.iter().zip(diff_ids) {
            if self.inner.layers.get(diff_id).is_some() {
                progress.send(Progress::update(descriptor.digest.short(), "Already exists")).await;
            } else {
                progress.send(Progress::update(descriptor.digest.short(), "Pulling fs layer")).await;
                missing.push((descriptor, diff_id));
            }
        }
        let mut transfers: FuturesUnordered<_> = missing
            .into_iter()
            .map(|(descriptor, diff_id)| Box::pin(self.layer(session, descriptor, diff_id, progress)))
            .collect();
        while let Some(outcome) = transfers.next().await {
            outcome?;
        }
        self.add_image(raw, Kept::default(), Some(bytes)).await
    }

    async fn layer(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        diff_id: &DiffId,
        progress: &ProgressSender,
    ) -> Result<()> {
        let short = descriptor.digest.short();
        let lock = self.inner.registries.lock(&format!("layer {diff_id}"));
        let _alone = lock.lock().await;
        let semaphore = &self.inner.registries.downloads;
        let permit = match semaphore.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                progress.send(Progress::update(short, "Waiting")).await;
                semaphore.acquire().await.map_err(|_| ImageError::Canceled)?
            }
        };
        if self.inner.layers.get(diff_id).is_some() {
            progress.send(Progress::update(short, "Already exists")).await;
            return Ok(());
        }
        let scratch = self.inner.layers.scratch()?;
        let path = scratch.join("blob");
        download(session, descriptor, &path, progress).await?;
        progress.send(Progress::update(short, "Download complete")).await;

        self.extract(descriptor, diff_id, scratch, progress.clone()).await?;
        drop(permit);
        progress.send(Progress::update(short, "Pull complete")).await;
        Ok(())
    }

    async fn extract(
        &self,
        descriptor: &Descriptor,
        diff_id: &DiffId,
        scratch: Scratch,
        progress: ProgressSender,
    ) -> Result<()> {
        let store = self.clone();
        let (digest, size, diff_id) = (descriptor.digest.clone(), descriptor.size, diff_id.clone());
        let work = move || {
            let short = digest.short().to_owned();
            let path = scratch.join("blob");
            let incoming = Incoming { file: &path, digest: Some((digest, size)), diff_id: Some(diff_id) };
            let mut told = Instant::now();
            store.inner.layers.register(&incoming, |done| {
                if done == size || told.elapsed() > PROGRESS_INTERVAL {
                    told = Instant::now();
                    progress.offer(Progress::transfer(&short, "Extracting", done, size));
                }
            })?;
            Ok(())
        };
        blocking(work).await
    }

    /// Points tag and digest at the image; tells whether the name meant something else before.
    async fn take_names(&self, reference: &Reference, digest: &Digest, id: &ImageId) -> Result<bool> {
        let by_digest = digest_key(reference, digest);
        let by_tag = reference.digest.is_none().then(|| tag_key(reference));
        let current = by_tag.as_ref().unwrap_or(&by_digest);
        let same = {
            let state = self.state();
            state.named(current) == Some(id) && state.named(&by_digest) == Some(id)
        };
        if same {
            return Ok(false);
        }
        let updated = self
            .change(|state| {
                let before = state.name(by_digest.clone(), id.clone(), now());
                match by_tag {
                    Some(tag) => state.name(tag, id.clone(), now()),
                    None => before,
                }
            })
            .await?;
        Ok(updated.as_ref() != Some(id))
    }
}

/// The last line of a pull.
fn status(reference: &Reference, updated: bool) -> Progress {
    let what = if updated { "Downloaded newer image for" } else { "Image is up to date for" };
    Progress::message(format!("Status: {what} {}", reference.familiar()))
}

/// `library/nginx` as Docker shows it in the first line.
fn shown_path(reference: &Reference) -> &str {
    &reference.path
}

/// The manifest for the wanted platform, and its own bytes.
async fn choose(
    session: &Session,
    reference: &Reference,
    top: &Fetched,
    wanted: &Platform,
) -> Result<(Manifest, Vec<u8>)> {
    let index = match Document::parse(&top.bytes)? {
        Document::Manifest(manifest) => return Ok((*manifest, top.bytes.clone())),
        Document::Index(index) => index,
    };
    let chosen = index.choose(wanted).ok_or_else(|| {
        let variant = if wanted.variant.is_empty() { String::new() } else { format!("/{}", wanted.variant) };
        ImageError::NotFound(format!(
            "no matching manifest for {}/{}{variant} in the manifest list entries",
            wanted.os, wanted.architecture
        ))
    })?;
    let fetched = session.manifest(reference, chosen.digest.as_str()).await?;
    match Document::parse(&fetched.bytes)? {
        Document::Manifest(manifest) => Ok((*manifest, fetched.bytes)),
        Document::Index(_) => Err(ImageError::Registry("a manifest list inside a manifest list".to_owned())),
    }
}

/// Fetches a blob into a file, hashing as it comes; takes up a broken transfer where it broke.
async fn download(session: &Session, descriptor: &Descriptor, path: &Path, progress: &ProgressSender) -> Result<()> {
    let short = descriptor.digest.short();
    let file = tokio::fs::File::create(path).await.map_err(ImageError::io("create", path))?;
    let mut file = BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
    let mut hasher = Sha256::new();
    let mut received: u64 = 0;
    let mut failures = 0;
    let mut told = Instant::now();
    'transfer: loop {
        let mut response = session.blob(&descriptor.digest, received).await?;
        if received > 0 && response.status().as_u16() != 206 {
            file.seek(std::io::SeekFrom::Start(0)).await.map_err(ImageError::io("write", path))?;
            hasher = Sha256::new();
            received = 0;
        }
        let before = received;
        let url = response.url().to_string();
        let error = loop {
            match next_chunk(&mut response, &url).await {
                Ok(Some(chunk)) => {
                    received += chunk.len() as u64;
                    if received > descriptor.size {
                        return Err(ImageError::Registry(format!(
                            "blob {} is larger than its manifest says ({} bytes)",
                            descriptor.digest, descriptor.size
                        )));
                    }
                    hasher.update(&chunk);
                    file.write_all(&chunk).await.map_err(ImageError::io("write", path))?;
                    if told.elapsed() > PROGRESS_INTERVAL {
                        told = Instant::now();
                        progress.offer(Progress::transfer(short, "Downloading", received, descriptor.size));
                    }
                }
                Ok(None) if received == descriptor.size => break 'transfer,
                // The answer is whole and too short: it would be again.
                Ok(None) => {
                    return Err(ImageError::Registry(format!(
                        "unexpected EOF: blob {} ended after {received} of {} bytes",
                        descriptor.digest, descriptor.size
                    )));
                }
                Err(error) => break error,
            }
        };
        failures = if received > before { 1 } else { failures + 1 };
        if failures >= RESUMES {
            return Err(error);
        }
        tracing::debug!(%error, received, "download broken, taking it up again");
        progress.send(Progress::update(short, format!("Retrying in {} second", RESUME_DELAY.as_secs().max(1)))).await;
        tokio::time::sleep(RESUME_DELAY).await;
    }
    file.flush().await.map_err(ImageError::io("write", path))?;
    // A transfer begun anew may be shorter than what was written before.
    file.get_ref().set_len(received).await.map_err(ImageError::io("write", path))?;
    progress.send(Progress::update(short, "Verifying Checksum")).await;
    let actual = Digest::from_hasher(hasher);
    if actual != descriptor.digest {
        return Err(ImageError::DigestMismatch { expected: descriptor.digest.to_string(), actual: actual.to_string() });
    }
    Ok(())
}
