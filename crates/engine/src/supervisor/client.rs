//! The daemon's connection to the supervisor: requests with answers, and the news it sends.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::packet;
use super::protocol::{Answer, Exit, Launch, MAX_PACKET, Notice, Op, Packet, Request, Stdio};
use crate::config::EngineConfig;
use crate::error::{EngineError, Result};

/// Starting a process may take the disk's time; a supervisor that says nothing for so long is broken.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a started supervisor may take to listen.
const START_TRIES: u32 = 100;

/// The ends of a process's stdio that are ours.
#[derive(Debug, Default)]
pub(crate) struct ProcessStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) pty: Option<OwnedFd>,
}

impl ProcessStdio {
    fn new(kind: Stdio, fds: Vec<OwnedFd>) -> Self {
        let mut fds = fds.into_iter();
        Self {
            stdin: kind.stdin.then(|| fds.next()).flatten(),
            stdout: kind.output.then(|| fds.next()).flatten(),
            stderr: kind.output.then(|| fds.next()).flatten(),
            pty: kind.pty.then(|| fds.next()).flatten(),
        }
    }
}

/// A container the supervisor holds, as it told when we said hello.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) started_at: i64,
    pub(crate) exit: Option<Exit>,
    pub(crate) stdio: ProcessStdio,
}

#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) stdio: ProcessStdio,
}

/// A process that could not be started.
#[derive(Debug)]
pub(crate) struct LaunchFailure {
    pub(crate) message: String,
    pub(crate) exit_code: i32,
}

type Answers = Mutex<HashMap<u64, oneshot::Sender<(Answer, Vec<OwnedFd>)>>>;
type Key = (String, String);

/// Where the end of a process is waited for; it may come before anyone waits.
#[derive(Debug)]
enum ExitSlot {
    Awaited(oneshot::Sender<Exit>),
    Arrived(Exit),
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    answers: Answers,
    exits: Mutex<HashMap<Key, ExitSlot>>,
    sequence: AtomicU64,
    seals: AtomicBool,
}

/// One connection. When it breaks, every call on it fails; the engine then makes another.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    pub(crate) supervisor_pid: i32,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> EngineError {
    EngineError::Unavailable("the container supervisor does not answer".to_owned())
}

impl Connection {
    /// Connects, starting the supervisor if there is none. The third value ends when the connection does.
    pub(crate) async fn open(config: &EngineConfig) -> Result<(Self, Vec<Known>, tokio::task::JoinHandle<()>)> {
        let socket = connect_or_start(config).await?;
        let socket = crate::sys::watch::watch(socket, Interest::READABLE | Interest::WRITABLE)
            .map_err(|e| EngineError::Internal(format!("supervisor socket: {e}")))?;
        let shared = Arc::new(Shared {
            socket,
            answers: Mutex::default(),
            exits: Mutex::default(),
            sequence: AtomicU64::new(1),
            seals: AtomicBool::new(false),
        });
        let (known_tx, mut known_rx) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_packets(Arc::clone(&shared), known_tx));
        let mut connection = Self { shared, supervisor_pid: 0 };
        connection.supervisor_pid = connection.hello().await?;
        let mut known = Vec::new();
        while let Ok(one) = known_rx.try_recv() {
            known.push(one);
        }
        Ok((connection, known, reader))
    }

    /// The supervisor's process id.
    async fn hello(&self) -> Result<i32> {
        match self.request(Op::Hello).await? {
            (Answer::Hello { pid, seals, .. }, _) => {
                self.shared.seals.store(seals, Ordering::Relaxed);
                Ok(pid)
            }
            _ => Err(lost()),
        }
    }

    /// Whether the supervisor, which may be of an older version, heeds `Security::sealed`.
    pub(crate) fn seals(&self) -> bool {
        self.shared.seals.load(Ordering::Relaxed)
    }

    pub(crate) async fn launch(&self, launch: Launch) -> Result<Result<Launched, LaunchFailure>> {
        let op = if launch.exec.is_empty() { Op::Run(launch) } else { Op::Exec(launch) };
        match self.request(op).await? {
            (Answer::Started { pid, stdio }, fds) => Ok(Ok(Launched { pid, stdio: ProcessStdio::new(stdio, fds) })),
            (Answer::Failed { message, exit_code }, _) => Ok(Err(LaunchFailure { message, exit_code })),
            _ => Err(lost()),
        }
    }

    /// False if there is no such process any more.
    pub(crate) async fn signal(&self, id: &str, exec: &str, signal: i32) -> Result<bool> {
        let op = Op::Signal { id: id.to_owned(), exec: exec.to_owned(), signal };
        Ok(matches!(self.request(op).await?.0, Answer::Done))
    }

    pub(crate) async fn lease(&self, id: &str, until: Duration) -> Result<()> {
        let until_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.request(Op::Lease { id: id.to_owned(), until_ms }).await.map(|_| ())
    }

    pub(crate) async fn close_stdin(&self, id: &str) -> Result<()> {
        self.request(Op::CloseStdin { id: id.to_owned() }).await.map(|_| ())
    }

    pub(crate) async fn forget(&self, id: &str, exec: &str) -> Result<()> {
        locked(&self.shared.exits).remove(&(id.to_owned(), exec.to_owned()));
        self.request(Op::Forget { id: id.to_owned(), exec: exec.to_owned() }).await.map(|_| ())
    }

    /// Ends a supervisor that has no containers.
    pub(crate) async fn quit(&self) {
        let _ = self.request(Op::Quit).await;
    }

    /// Comes back with an error if the upgrade was refused; after a success the connection is asked again.
    pub(crate) async fn upgrade(&self, exe: &str) -> Result<()> {
        let refused =
            tokio::time::timeout(Duration::from_millis(500), self.request(Op::Upgrade { exe: exe.to_owned() })).await;
        match refused {
            Ok(Ok((Answer::Refused { message }, _))) => {
                Err(EngineError::Conflict(format!("the supervisor was not upgraded: {message}")))
            }
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => self.hello().await.map(|_| ()),
        }
    }

    /// The end of a process; an error if the connection breaks first.
    pub(crate) async fn exited(&self, id: &str, exec: &str) -> Result<Exit> {
        let key = (id.to_owned(), exec.to_owned());
        let receiver = {
            let mut exits = locked(&self.shared.exits);
            if let Some(ExitSlot::Arrived(exit)) = exits.get(&key) {
                let exit = *exit;
                exits.remove(&key);
                return Ok(exit);
            }
            let (sender, receiver) = oneshot::channel();
            exits.insert(key, ExitSlot::Awaited(sender));
            receiver
        };
        receiver.await.map_err(|_| lost())
    }

    async fn request(&self, op: Op) -> Result<(Answer, Vec<OwnedFd>)> {
        let seq = self.shared.sequence.fetch_add(1, Ordering::Relaxed);
        let text = serde_json::to_vec(&Request { seq, op })
            .map_err(|e| EngineError::Internal(format!("supervisor request: {e}")))?;
        let (sender, receiver) = oneshot::channel();
        locked(&self.shared.answers).insert(seq, sender);
        let sent = self.shared.socket.async_io(Interest::WRITABLE, |socket| packet::send(socket, &text, &[])).await;
        if sent.is_err() {
            locked(&self.shared.answers).remove(&seq);
            return Err(lost());
        }
        match tokio::time::timeout(DEADLINE, receiver).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(lost()),
            Err(_) => {
                locked(&self.shared.answers).remove(&seq);
                Err(lost())
            }
        }
    }
}

/// One reader, so that an answer and the notices after it stay in order.
async fn read_packets(shared: Arc<Shared>, known: mpsc::UnboundedSender<Known>) {
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let got = shared.socket.async_io(Interest::READABLE, |socket| packet::receive(socket, &mut buffer)).await;
        let Ok(Some((len, fds))) = got else { break };
        match serde_json::from_slice(&buffer[..len]) {
            Ok(Packet::Answer { seq, answer }) => {
                if let Some(waiting) = locked(&shared.answers).remove(&seq) {
                    let _ = waiting.send((answer, fds));
                }
            }
            Ok(Packet::Notice(Notice::Known { id, pid, started_at, exit, stdio })) => {
                let _ = known.send(Known { id, pid, started_at, exit, stdio: ProcessStdio::new(stdio, fds) });
            }
            Ok(Packet::Notice(Notice::Exited { id, exec, exit })) => {
                let mut exits = locked(&shared.exits);
                match exits.remove(&(id.clone(), exec.clone())) {
                    Some(ExitSlot::Awaited(waiting)) => {
                        let _ = waiting.send(exit);
                    }
                    Some(ExitSlot::Arrived(_)) | None => {
                        exits.insert((id, exec), ExitSlot::Arrived(exit));
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "unreadable packet from the supervisor"),
        }
    }
    // Dropping the senders tells everyone who waits.
    locked(&shared.answers).clear();
    locked(&shared.exits).clear();
}

async fn connect_or_start(config: &EngineConfig) -> Result<OwnedFd> {
    let path = super::socket_path(&config.exec_root);
    if let Ok(socket) = packet::connect(&path) {
        return Ok(socket);
    }
    let mut reason = String::new();
    for attempt in 0..START_TRIES {
        // Again from time to time: the one whose lock stood in the way may have been about to end.
        if attempt % 10 == 0
            && let Err(error) = start(config).await
        {
            reason = error;
        }
        match packet::connect(&path) {
            Ok(socket) => return Ok(socket),
            Err(error) if reason.is_empty() => reason = error.to_string(),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(EngineError::Unavailable(format!("the container supervisor could not be started: {reason}")))
}

async fn start(config: &EngineConfig) -> Result<(), String> {
    let status = tokio::process::Command::new(&config.supervisor_exe)
        .args(&config.supervisor_args)
        .arg("--exec-root")
        .arg(&config.exec_root)
        .stdin(std::process::Stdio::null())
        .status()
        .await
        .map_err(|e| format!("{}: {e}", config.supervisor_exe.display()))?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}
