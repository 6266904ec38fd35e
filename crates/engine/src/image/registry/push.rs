//! Push: layers the registry lacks, config, manifest. An image that was pulled is pushed with the manifest it came with, as
//! long as its blobs are still those: its digest stays the same everywhere.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::{Body, Method};
use skep_model::reference::Reference;
use tokio_util::io::ReaderStream;

use super::manifest::{self, Document, OCI_MANIFEST};
use super::pull::PROGRESS_INTERVAL;
use super::session::{Request, Session};
use super::words::Refusal;
use crate::image::compress::Compression;
use crate::image::id::{DiffId, Digest};
use crate::image::progress::{Progress, ProgressSender};
use crate::image::state::{Image, digest_key, tag_key};
use crate::image::store::{blocking, now, parse_reference};
use crate::image::{ImageError, ImageStore, RegistryAuth, Result};

const READ_CHUNK_BYTES: usize = 256 * 1024;

type Blob = (Compression, Digest, u64);

impl ImageStore {
    /// Sends an image, or all tags of a repository if `reference` names no tag.
    pub async fn push(&self, reference: &str, auth: Option<RegistryAuth>, progress: ProgressSender) -> Result<()> {
        let reference = parse_reference(reference)?;
        if reference.digest.is_some() {
            return Err(ImageError::Invalid("cannot push a digest reference".to_owned()));
        }
        let tags = self.tags_to_push(&reference)?;
        progress.send(Progress::message(format!("The push refers to repository [{}]", reference.name()))).await;
        let session = Session::open(&self.inner.registries, &reference, auth.as_ref(), "pull,push").await?;
        for (tag, image) in tags {
            self.push_tag(&session, &tag, &image, &progress).await?;
            self.emit("push", &tag.familiar(), &image.id, &tag.familiar_name());
        }
        Ok(())
    }

    fn tags_to_push(&self, reference: &Reference) -> Result<Vec<(Reference, Image)>> {
        let state = self.state();
        let keys: Vec<Reference> = match &reference.tag {
            Some(_) => vec![tag_key(reference)],
            None => state.tags_in(reference).cloned().collect(),
        };
        let found = keys.into_iter().filter_map(|key| {
            let image = state.named(&key).and_then(|id| state.image(id))?.clone();
            Some((key, image))
        });
        let found: Vec<_> = found.collect();
        if found.is_empty() {
            let name = match &reference.tag {
                Some(_) => format!("An image does not exist locally with the tag: {}", reference.familiar_name()),
                None => format!("An image does not exist locally with the tag: {}", reference.name()),
            };
            return Err(ImageError::NotFound(name));
        }
        Ok(found)
    }

    async fn push_tag(
        &self,
        session: &Session,
        tag: &Reference,
        image: &Image,
        progress: &ProgressSender,
    ) -> Result<()> {
        let diff_ids = &image.file.rootfs.diff_ids;
        let _lease = self.lease(diff_ids);
        for diff_id in diff_ids.iter().rev() {
            progress.send(Progress::update(diff_id.short(), "Preparing")).await;
        }
        let mut blobs: Vec<Option<Blob>> = vec![None; diff_ids.len()];
        let mut transfers: FuturesUnordered<_> = (0..diff_ids.len())
            .rev()
            .map(|at| {
                let diff_id = &diff_ids[at];
                Box::pin(async move { Ok::<_, ImageError>((at, self.push_layer(session, diff_id, progress).await?)) })
            })
            .collect();
        while let Some(outcome) = transfers.next().await {
            let (at, blob) = outcome?;
            blobs[at] = Some(blob);
        }
        let blobs: Vec<Blob> = blobs.into_iter().flatten().collect();

        let config = self.raw_config(&image.id)?;
        let config_size = config.len() as u64;
        if !has_blob(session, &image.id).await? {
            let body = move || Body::from(config.clone());
            upload(session, &image.id, config_size, &body).await?;
        }
        let (bytes, media_type) = self.manifest_of(image, &blobs, config_size).await?;
        let size = bytes.len();
        let digest = Digest::of(&bytes);
        let name = tag.tag.clone().unwrap_or_default();
        let body = move || Body::from(bytes.clone());
        let url = session.url(&format!("manifests/{name}"));
        let request = Request::new(Method::PUT, url).header("content-type", &media_type).body(&body);
        session.send_ok(&request).await?.map_err(Refusal::into_error)?;

        let by_digest = digest_key(tag, &digest);
        if self.state().named(&by_digest) != Some(&image.id) {
            self.change(|state| state.name(by_digest.clone(), image.id.clone(), now())).await?;
        }
        progress.send(Progress::message(format!("{name}: digest: {digest} size: {size}"))).await;
        let aux = serde_json::json!({ "Tag": name, "Digest": digest, "Size": size });
        progress.send(Progress { detail: Some(super::super::ProgressDetail::default()), ..Progress::aux(aux) }).await;
        Ok(())
    }

    async fn push_layer(&self, session: &Session, diff_id: &DiffId, progress: &ProgressSender) -> Result<Blob> {
        let short = diff_id.short();
        // One compression and one upload of a layer at a time, whoever asks.
        let lock = self.inner.registries.lock(&format!("layer {diff_id}"));
        let _alone = lock.lock().await;
        let uploads = &self.inner.registries.uploads;
        let _permit = match uploads.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                progress.send(Progress::update(short, "Waiting")).await;
                uploads.acquire().await.map_err(|_| ImageError::Canceled)?
            }
        };
        let store = self.clone();
        let id = diff_id.clone();
        let (blob, path) =
            blocking(move || Ok((store.inner.layers.blob(&id)?, store.inner.layers.blob_path(&id)))).await?;
        let (_, digest, size) = &blob;
        if has_blob(session, digest).await? {
            progress.send(Progress::update(short, "Layer already exists")).await;
            return Ok(blob);
        }
        let body = file_body(path, short.to_owned(), *size, progress.clone());
        upload(session, digest, *size, &body).await?;
        progress.send(Progress::update(short, "Pushed")).await;
        Ok(blob)
    }

    async fn manifest_of(&self, image: &Image, blobs: &[Blob], config_size: u64) -> Result<(Vec<u8>, String)> {
        if let Some(kept) = &image.kept.manifest
            && let Ok(bytes) = tokio::fs::read(self.manifest_path(kept)).await
            && let Ok(Document::Manifest(manifest)) = Document::parse(&bytes)
            && manifest.config.digest == image.id
            && manifest.layers.iter().map(|layer| &layer.digest).eq(blobs.iter().map(|(_, digest, _)| digest))
        {
            let media_type = manifest.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
            return Ok((bytes, media_type));
        }
        let manifest = manifest::compose((image.id.clone(), config_size), blobs);
        let bytes = serde_json::to_vec_pretty(&manifest).map_err(|error| ImageError::Internal(error.to_string()))?;
        Ok((bytes, manifest.media_type.unwrap_or_default()))
    }
}

async fn has_blob(session: &Session, digest: &Digest) -> Result<bool> {
    let request = Request::new(Method::HEAD, session.url(&format!("blobs/{digest}")));
    match session.send_ok(&request).await? {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.status == 404 => Ok(false),
        Err(refusal) => Err(refusal.into_error()),
    }
}

/// How often a broken upload is begun anew.
const UPLOADS: u32 = 3;

/// One POST for a place, one PUT with the bytes; both again if the connection breaks, since the place may hold half a blob.
async fn upload(session: &Session, digest: &Digest, size: u64, body: &(dyn Fn() -> Body + Send + Sync)) -> Result<()> {
    let mut attempt = 1;
    loop {
        let start = Request::new(Method::POST, session.url("blobs/uploads/")).header("content-length", "0");
        let response = session.send_ok(&start).await?.map_err(Refusal::into_error)?;
        let location = response.headers().get("location").and_then(|value| value.to_str().ok());
        let location =
            location.ok_or_else(|| ImageError::Registry("the registry gave no place for the upload".to_owned()))?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{}{separator}digest={digest}", session.absolute(location));
        let request = Request::new(Method::PUT, url)
            .header("content-type", "application/octet-stream")
            .header("content-length", &size.to_string())
            .body(body)
            .attempts(1);
        match session.send_ok(&request).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(refusal)) if refusal.status < 500 || attempt == UPLOADS => return Err(refusal.into_error()),
            Err(error) if attempt == UPLOADS => return Err(error),
            Ok(Err(_)) | Err(_) => tracing::debug!(%digest, attempt, "upload broken, beginning anew"),
        }
        attempt += 1;
    }
}

/// A blob file as a body that tells how far it has come.
fn file_body(path: PathBuf, id: String, size: u64, progress: ProgressSender) -> impl Fn() -> Body + Send + Sync {
    move || {
        let (id, progress) = (id.clone(), progress.clone());
        let sent = Arc::new(AtomicU64::new(0));
        let mut told = Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or_else(Instant::now);
        let path = path.clone();
        let stream = futures_util::stream::once(async move { tokio::fs::File::open(path).await })
            .map_ok(|file| ReaderStream::with_capacity(file, READ_CHUNK_BYTES))
            .try_flatten()
            .inspect_ok(move |chunk: &bytes::Bytes| {
                let current = sent.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
                if current == size || told.elapsed() > PROGRESS_INTERVAL {
                    told = Instant::now();
                    progress.offer(Progress::transfer(&id, "Pushing", current, size));
                }
            });
        Body::wrap_stream(stream)
    }
}
