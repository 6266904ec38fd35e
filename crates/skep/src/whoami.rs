//! The server inside the built-in image `skep/whoami`: it answers with who it is and who asked, in traefik/whoami's lines.
//!
//! Small on purpose: a thread a connection with limits, no runtime, since dozens of these run on one small machine.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

use crate::args::WhoamiFlags;

/// More connections than this at once are closed unanswered.
const MAX_CONNECTIONS: usize = 512;
/// A request's head may not be longer, in bytes.
const MAX_HEAD_BYTES: u64 = 16 * 1024;
const STACK_BYTES: usize = 64 * 1024;
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// So long after the stop signal those who asked before it still get their answers.
const FAREWELL: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub(crate) fn run(flags: &WhoamiFlags) -> anyhow::Result<ExitCode> {
    // pid 1 ignores signals it has no handler for: wait for them on the main thread instead.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    let tcp = TcpListener::bind(("::", flags.port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", flags.port)))
        .with_context(|| format!("cannot listen on port {}", flags.port))?;
    let udp =
        UdpSocket::bind(("0.0.0.0", flags.port)).with_context(|| format!("cannot bind udp port {}", flags.port))?;
    println!("Starting up on port {}", flags.port);
    let name = flags.name.clone();
    let (tcp, owed) = (Arc::new(tcp), Owed::default());
    let (listener, counter) = (Arc::clone(&tcp), owed.clone());
    spawn("http", move || accept(&listener, &counter, name.as_deref()))?;
    spawn("udp", move || echo(&udp))?;
    signals.wait().context("cannot wait for a signal")?;
    finish(&tcp, &owed);
    Ok(ExitCode::SUCCESS)
}

/// Answers that clients wait for, or will: those that just came have not asked yet.
#[derive(Clone, Default)]
struct Owed(Arc<AtomicUsize>);

/// One of them, until dropped.
struct Answer(Owed);

impl Owed {
    fn one(&self) -> Answer {
        self.0.fetch_add(1, Ordering::SeqCst);
        Answer(self.clone())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Until nobody waits for an answer.
fn finish(listener: &TcpListener, owed: &Owed) {
    let until = Instant::now() + FAREWELL;
    // In this order: who leaves the queue is counted by then.
    while (is_waited_at(listener, PollTimeout::ZERO) || owed.0.load(Ordering::SeqCst) > 0) && Instant::now() < until {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Whether a client is in the queue.
fn is_waited_at(listener: &TcpListener, patience: PollTimeout) -> bool {
    let mut queue = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut queue, patience).is_ok_and(|ready| ready > 0)
}

fn spawn(name: &str, job: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(job).map(drop)
}

fn accept(listener: &TcpListener, owed: &Owed, name: Option<&str>) {
    let open = Arc::new(AtomicUsize::new(0));
    let name: Option<Arc<str>> = name.map(Arc::from);
    loop {
        if !is_waited_at(listener, PollTimeout::NONE) {
            continue;
        }
        // Counted before it leaves the queue: between the two `finish` would overlook it.
        let answer = owed.one();
        let Ok((stream, _)) = listener.accept() else { continue };
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (counter, name) = (open.clone(), name.clone());
        let started = spawn("connection", move || {
            // A client that goes away is no news.
            let _ = serve(stream, answer, name.as_deref());
            counter.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Answers datagrams with the hostname and the asker's address, so that UDP publishing can be seen to work.
fn echo(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let said = String::from_utf8_lossy(&buffer[..length]);
        let _ = socket
            .send_to(format!("Hostname: {}\nRemoteAddr: {from}\nReceived: {said}\n", hostname()).as_bytes(), from);
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default()
}

fn serve(stream: TcpStream, mut answer: Answer, name: Option<&str>) -> std::io::Result<()> {
    let owed = answer.0.clone();
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let Some(request) = Request::read(&mut reader)? else { return Ok(()) };
        let body = match request.path.split('?').next().unwrap_or_default() {
            "/health" => String::new(),
            _ => describe(&request, &stream, name),
        };
        let close = request.close;
        write!(
            writer,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{}\r\n{}",
            body.len(),
            if close { "Connection: close\r\n" } else { "" },
            if request.method == "HEAD" { "" } else { &body },
        )?;
        if close {
            return Ok(());
        }
        drop(answer);
        // Until it asks again; then there is one more.
        if reader.fill_buf()?.is_empty() {
            return Ok(());
        }
        answer = owed.one();
    }
}

struct Request {
    method: String,
    path: String,
    version: String,
    headers: Vec<(String, String)>,
    close: bool,
}

impl Request {
    fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Self>> {
        let mut head = reader.by_ref().take(MAX_HEAD_BYTES);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Ok(None);
        };
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if head.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.push((name.trim().to_owned(), value.trim().to_owned()));
            }
        }
        let header =
            |wanted: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(wanted)).map(|(_, v)| v.as_str());
        let length: u64 = header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        let close = header("connection").map_or(version == "HTTP/1.0", |v| v.eq_ignore_ascii_case("close"));
        Ok(Some(Self { close, method, path, version, headers }))
    }
}

/// The lines of traefik/whoami, and what Swarm knows of the task where the service passes it on (`SKEP_TASK_NAME`, `SKEP_NODE`).
fn describe(request: &Request, stream: &TcpStream, name: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(name) = name {
        let _ = writeln!(text, "Name: {name}");
    }
    let _ = writeln!(text, "Hostname: {}", hostname());
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            let _ = writeln!(text, "IP: {}", v4.ip());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            let _ = writeln!(text, "IP: {}", v6.ip());
        }
    }
    if let Ok(peer) = stream.peer_addr() {
        let ip = peer.ip().to_canonical();
        let _ = writeln!(text, "RemoteAddr: {}", std::net::SocketAddr::new(ip, peer.port()));
    }
    for (line, variable) in [("Task", "SKEP_TASK_NAME"), ("Node", "SKEP_NODE")] {
        if let Ok(value) = std::env::var(variable) {
            let _ = writeln!(text, "{line}: {value}");
        }
    }
    let _ = writeln!(text, "{} {} {}", request.method, request.path, request.version);
    let host = request.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("host"));
    if let Some((_, host)) = host {
        let _ = writeln!(text, "Host: {host}");
    }
    let mut headers: Vec<_> = request.headers.iter().filter(|(n, _)| !n.eq_ignore_ascii_case("host")).collect();
    headers.sort();
    for (name, value) in headers {
        let _ = writeln!(text, "{name}: {value}");
    }
    text.push('\n');
    text
}
