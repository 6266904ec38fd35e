//! `skep swarm backup` and `restore`: the file's way between disk and daemon.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use serde::Deserialize;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use crate::args::{BackupCommand, SealArgs};
use crate::client::{Client, empty};

/// Progress is told each time so much more has passed.
const PROGRESS_STEP_BYTES: u64 = 8 * 1024 * 1024;

pub(crate) fn run(host: &str, command: BackupCommand) -> anyhow::Result<()> {
    let client = Client::new(host.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match command {
            BackupCommand::Backup { file, passphrase_file } => {
                backup(&file, &client, &SealArgs { passphrase_file, unlock_key_file: None }).await
            }
            BackupCommand::Restore { file, seal, force, listen_addr, advertise_addr, data_path_addr } => {
                let query =
                    [("listenAddr", listen_addr), ("advertiseAddr", advertise_addr), ("dataPathAddr", data_path_addr)];
                let given = query.iter().filter_map(|(name, value)| Some(format!("&{name}={}", value.as_ref()?)));
                let path = format!("/skep/restore?force={force}{}", given.collect::<String>());
                restore(&file, &client, &seal, &path).await
            }
        }
    });
    // A blocked read of stdin must not keep the program.
    runtime.shutdown_background();
    done
}

/// `X-Skep-Key`, when there is something to say.
fn key_header(seal: &SealArgs) -> anyhow::Result<Option<String>> {
    let read = |path: &Option<PathBuf>| {
        let Some(path) = path else { return Ok(String::new()) };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => bail!("{} is empty", path.display()),
            text => Ok(text.to_owned()),
        }
    };
    let (passphrase, unlock_key) = (read(&seal.passphrase_file)?, read(&seal.unlock_key_file)?);
    if passphrase.is_empty() && unlock_key.is_empty() {
        return Ok(None);
    }
    let json = serde_json::json!({ "Passphrase": passphrase, "UnlockKey": unlock_key });
    Ok(Some(URL_SAFE.encode(json.to_string())))
}

fn request(method: &str, path: &str, seal: &SealArgs) -> anyhow::Result<hyper::http::request::Builder> {
    let mut request = Request::builder().method(method).uri(path).header("Host", "skep");
    if let Some(key) = key_header(seal)? {
        request = request.header("X-Skep-Key", key);
    }
    Ok(request)
}

/// What the first line of a backup says, as far as people want to know.
#[derive(Deserialize)]
struct Header {
    cluster_id: String,
    index: u64,
    sealed_with: serde_json::Value,
}

struct Progress {
    verb: &'static str,
    bytes: u64,
    told: u64,
}

impl Progress {
    fn new(verb: &'static str) -> Self {
        Self { verb, bytes: 0, told: 0 }
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.bytes - self.told >= PROGRESS_STEP_BYTES && std::io::stderr().is_terminal() {
            self.told = self.bytes;
            eprint!("\r{} {} MiB", self.verb, self.bytes >> 20);
        }
    }

    fn end(&self) {
        if self.told > 0 {
            eprintln!();
        }
    }
}

async fn backup(file: &Path, client: &Client, seal: &SealArgs) -> anyhow::Result<()> {
    let to_stdout = file == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() {
        bail!("a backup is not text: give a file, or redirect the output");
    }
    let response = client.send(request("GET", "/skep/backup", seal)?.body(empty())?).await?;
    if to_stdout {
        let header = receive(response, &mut std::io::stdout().lock()).await?;
        return tell(&header, "standard output");
    }
    // Written beside, so that a backup that fails does not take the last one along.
    let name = file.file_name().with_context(|| format!("{} is no file name", file.display()))?;
    let partial = file.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let write = async {
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        let header = receive(response, &mut out).await?;
        out.sync_all()?;
        std::fs::rename(&partial, file)?;
        anyhow::Ok(header)
    };
    match write.await {
        Ok(header) => tell(&header, &file.display().to_string()),
        Err(error) => {
            let _ = std::fs::remove_file(&partial);
            Err(error.context(format!("cannot write {}", file.display())))
        }
    }
}

async fn receive(response: Response<Incoming>, out: &mut impl Write) -> anyhow::Result<(Vec<u8>, u64)> {
    let mut progress = Progress::new("received");
    let mut header = Vec::new();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the daemon went away in the middle of the backup")?.into_data() else { continue };
        if !header.contains(&b'\n') {
            header.extend_from_slice(&data);
        }
        out.write_all(&data)?;
        progress.add(data.len());
    }
    out.flush()?;
    progress.end();
    Ok((header, progress.bytes))
}

fn tell((header, bytes): &(Vec<u8>, u64), place: &str) -> anyhow::Result<()> {
    let line = header.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let header: Header = serde_json::from_slice(line).context("what the daemon sent is no backup")?;
    eprintln!("Swarm {} up to change {}: {bytes} bytes in {place}", header.cluster_id, header.index);
    match &header.sealed_with {
        serde_json::Value::String(with) if with == "UnlockKey" => {
            eprintln!("Sealed with the swarm's unlock key as it is now (docker swarm unlock-key): keep both.");
        }
        serde_json::Value::Object(with) if with.contains_key("Passphrase") => eprintln!("Sealed with the passphrase."),
        _ => eprintln!("NOT sealed: who reads it has every secret and the root's key. See --passphrase-file."),
    }
    Ok(())
}

async fn restore(file: &Path, client: &Client, seal: &SealArgs, path: &str) -> anyhow::Result<()> {
    let input: Box<dyn AsyncRead + Send + Unpin> = if file == Path::new("-") {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("cannot read standard input")?;
        Box::new(tokio::fs::File::from_std(stdin.into()))
    } else {
        let opened = tokio::fs::File::open(file).await;
        Box::new(opened.with_context(|| format!("cannot open {}", file.display()))?)
    };
    let mut progress = Progress::new("sent");
    let parts = ReaderStream::with_capacity(input, 256 * 1024).map_ok(move |part: Bytes| {
        progress.add(part.len());
        Frame::data(part)
    });
    let request = request("POST", path, seal)?.body(StreamBody::new(parts).boxed_unsync())?;
    let answer = client.send(request).await?.into_body().collect().await?.to_bytes();
    let node_id: String = serde_json::from_slice(&answer).context("the daemon's answer is not understood")?;
    println!("Swarm restored: this node ({node_id}) is its only manager.");
    println!("To add others, run 'docker swarm join-token manager' (or worker) and follow the instructions.");
    Ok(())
}
