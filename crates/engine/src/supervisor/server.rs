//! The supervisor's loop: requests from the daemon, results from helpers, children that ended.

mod lease;
#[cfg(test)]
mod tests;
mod upgrade;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::helper::{self, ChildStdio, Outcome};
use super::packet;
use super::protocol::{Answer, Exit, Launch, MAX_PACKET, Notice, Op, PROTOCOL, Packet, Request, Stdio};
use crate::sys;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::FlockOperation;

/// So much may wait for a daemon that does not read before it is disconnected; it learns the rest when it comes back.
const MAX_OUTGOING: usize = 4096;
/// With no daemon and no container, this long until it ends by itself.
const IDLE: Duration = Duration::from_secs(3);
/// Room in an output pipe while no daemon reads. Less is taken where the user's pipe quota is used up.
const PIPE_BYTES: usize = 1 << 20;
/// How long a new daemon waits for containers that the one before it was starting.
const GREETING: Duration = Duration::from_secs(10);

/// A process it started: a container's init (`exec` empty) or an exec.
#[derive(Debug)]
struct Process {
    pid: i32,
    started_at: i64,
    exit: Option<Exit>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    pty: Option<OwnedFd>,
}

impl Process {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        [&self.stdin, &self.stdout, &self.stderr, &self.pty].into_iter().flatten().map(AsFd::as_fd).collect()
    }

    fn stdio(&self) -> Stdio {
        Stdio { stdin: self.stdin.is_some(), output: self.stdout.is_some(), pty: self.pty.is_some() }
    }
}

/// A request that a helper works on.
#[derive(Debug)]
struct Job {
    /// Of the request; `None` once the daemon that made it is gone.
    seq: Option<u64>,
    launch: Launch,
    result: OwnedFd,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

type Key = (String, String);

#[derive(Debug)]
struct Server {
    directory: PathBuf,
    exits: PathBuf,
    listener: OwnedFd,
    signals: SignalFd,
    lock: OwnedFd,
    daemon: Option<OwnedFd>,
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    processes: BTreeMap<Key, Process>,
    jobs: Vec<Job>,
    /// A daemon that said hello while the one before it was starting containers, and until when it is kept waiting for them.
    greeting: Option<(u64, Instant)>,
    /// Ends of children not yet claimed by a helper's report; kept only while helpers run.
    unclaimed: HashMap<i32, Exit>,
    idle_since: Option<Instant>,
    /// Until when containers may run, in milliseconds since boot.
    leases: BTreeMap<String, u64>,
}

/// Starts (or, with `resume`, continues after an upgrade) and loops. Comes back in the foreground process when the
/// background one listens.
pub(super) fn run(exec_root: &Path, resume: Option<RawFd>) -> std::io::Result<()> {
    let mut server = match resume {
        Some(fd) => Server::resume(exec_root, fd)?,
        None => match Server::start(exec_root)? {
            Some(server) => server,
            None => return Ok(()),
        },
    };
    server.serve()
}

impl Server {
    fn start(exec_root: &Path) -> std::io::Result<Option<Self>> {
        let directory = super::directory(exec_root);
        let exits = super::exits_directory(exec_root);
        std::fs::create_dir_all(super::state_root(exec_root))?;
        std::fs::create_dir_all(&exits)?;
        let lock: OwnedFd =
            std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock"))?.into();
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            // Another one is there: that is all the daemon wants.
            return Ok(None);
        }
        let listener = packet::listen(&super::socket_path(exec_root))?;
        if sys::process::fork()?.is_some() {
            return Ok(None);
        }
        detach(&directory);
        let signals = block_signals()?;
        let idle_since = Some(Instant::now());
        Ok(Some(Self { idle_since, ..Self::new(directory, exits, listener, signals, lock) }))
    }

    /// With nothing to look after.
    fn new(directory: PathBuf, exits: PathBuf, listener: OwnedFd, signals: SignalFd, lock: OwnedFd) -> Self {
        Self {
            directory,
            exits,
            listener,
            signals,
            lock,
            daemon: None,
            outgoing: VecDeque::new(),
            processes: BTreeMap::new(),
            jobs: Vec::new(),
            greeting: None,
            unclaimed: HashMap::new(),
            idle_since: None,
            leases: BTreeMap::new(),
        }
    }

    fn serve(&mut self) -> std::io::Result<()> {
        loop {
            self.reap();
            self.end_leases();
            self.greet();
            if self.may_end() {
                return Ok(());
            }
            self.poll()?;
        }
    }

    /// Waits for anything, then does it.
    fn poll(&mut self) -> std::io::Result<()> {
        let (mut daemon, mut listener, mut signal) = (false, false, false);
        let mut ready_jobs = Vec::new();
        {
            let mut fds = vec![
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            ];
            fds.extend(self.jobs.iter().map(|job| PollFd::new(&job.result, PollFlags::IN)));
            if let Some(connection) = &self.daemon {
                let flags = if self.outgoing.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
                fds.push(PollFd::new(connection, flags));
            }
            let timeout = self.patience();
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            listener |= ready(&fds[0]);
            signal |= ready(&fds[1]);
            for (index, fd) in fds[2..].iter().enumerate() {
                if index < self.jobs.len() {
                    if ready(fd) {
                        ready_jobs.push(index);
                    }
                } else {
                    daemon |= ready(fd);
                }
            }
        }
        if signal {
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
        for index in ready_jobs.into_iter().rev() {
            let job = self.jobs.swap_remove(index);
            self.finish(job);
        }
        if self.jobs.is_empty() {
            // What no helper claimed was libcontainer's intermediate process.
            self.unclaimed.clear();
        }
        if daemon {
            self.flush();
            self.read_requests();
        }
        if listener {
            self.accept();
        }
        Ok(())
    }

    fn accept(&mut self) {
        if let Ok(connection) = packet::accept(&self.listener) {
            // A second daemon can only be the successor of one that is gone.
            self.disconnect();
            self.daemon = Some(connection);
            self.idle_since = None;
        }
    }

    fn disconnect(&mut self) {
        self.daemon = None;
        self.outgoing.clear();
        self.greeting = None;
        self.jobs.iter_mut().for_each(|job| job.seq = None);
    }

    fn read_requests(&mut self) {
        let mut buffer = vec![0; MAX_PACKET];
        while let Some(connection) = &self.daemon {
            match packet::receive(connection, &mut buffer) {
                Ok(Some((len, _))) => match serde_json::from_slice::<Request>(&buffer[..len]) {
                    Ok(request) => self.handle(request),
                    Err(_) => self.disconnect(),
                },
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => self.disconnect(),
            }
        }
    }

    fn handle(&mut self, request: Request) {
        let seq = request.seq;
        match request.op {
            Op::Hello => self.greeting = Some((seq, Instant::now() + GREETING)),
            Op::Run(launch) | Op::Exec(launch) => {
                let outcome = self.check_lease(&launch).and_then(|()| self.launch(seq, launch));
                if let Err(error) = outcome {
                    self.answer(seq, Answer::Failed { message: error.to_string(), exit_code: 128 }, Vec::new());
                }
            }
            Op::Signal { id, exec, signal } => {
                let answer = match self.processes.get(&(id, exec)) {
                    // Not reaped, so the number is still this process.
                    Some(process) if process.exit.is_none() => match sys::process::kill(process.pid, signal) {
                        Ok(()) => Answer::Done,
                        Err(error) => Answer::Refused { message: error.to_string() },
                    },
                    _ => Answer::Refused { message: "no such process".to_owned() },
                };
                self.answer(seq, answer, Vec::new());
            }
            Op::CloseStdin { id } => {
                if let Some(process) = self.processes.get_mut(&(id, String::new())) {
                    process.stdin = None;
                }
                self.answer(seq, Answer::Done, Vec::new());
            }
            Op::Forget { id, exec } => {
                let _ = std::fs::remove_file(self.exits.join(&id));
                if exec.is_empty() {
                    self.leases.remove(&id);
                }
                self.processes.remove(&(id, exec));
                self.answer(seq, Answer::Done, Vec::new());
            }
            Op::Lease { id, until_ms } => {
                self.lease(id, until_ms);
                self.answer(seq, Answer::Done, Vec::new());
            }
            Op::Upgrade { exe } => {
                let message = self.upgrade(&exe);
                self.answer(seq, Answer::Refused { message }, Vec::new());
            }
            Op::Quit => {
                self.answer(seq, Answer::Done, Vec::new());
                self.flush();
                self.daemon = None;
                self.idle_since = Instant::now().checked_sub(IDLE);
            }
        }
    }

    /// What is being started is part of what a new daemon must know: it would take such a container for one that never was.
    fn greet(&mut self) {
        let Some((seq, until)) = self.greeting else { return };
        if Instant::now() >= until || self.jobs.iter().all(|job| !job.launch.exec.is_empty()) {
            self.greeting = None;
            self.hello(seq);
        }
    }

    fn hello(&mut self, seq: u64) {
        let mut notices = Vec::new();
        for ((id, exec), process) in &self.processes {
            if exec.is_empty() {
                let notice = Notice::Known {
                    id: id.clone(),
                    pid: process.pid,
                    started_at: process.started_at,
                    exit: process.exit,
                    stdio: process.stdio(),
                };
                let fds = process.fds().into_iter().filter_map(|fd| fd.try_clone_to_owned().ok()).collect();
                notices.push((Packet::Notice(notice), fds));
            }
        }
        for (packet, fds) in notices {
            self.push(&packet, fds);
        }
        let pid = nix::unistd::getpid().as_raw();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.answer(seq, Answer::Hello { protocol: PROTOCOL, version, pid, seals: true }, Vec::new());
    }

    fn launch(&mut self, seq: u64, launch: Launch) -> std::io::Result<()> {
        let key = (launch.id.clone(), launch.exec.clone());
        if self.processes.contains_key(&key)
            || self.jobs.iter().any(|j| (&j.launch.id, &j.launch.exec) == (&key.0, &key.1))
        {
            return Err(std::io::Error::other("the process exists already"));
        }
        let (ours, theirs) = packet::pair()?;
        let mut child = ChildStdio::default();
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        if !launch.tty {
            if launch.stdin {
                let (read, write) = pipe()?;
                (child.stdin, stdin) = (Some(read), Some(write));
            }
            if launch.output {
                let (read, write) = pipe()?;
                (stdout, child.stdout) = (Some(read), Some(write));
                let (read, write) = pipe()?;
                (stderr, child.stderr) = (Some(read), Some(write));
            }
        }
        if sys::process::fork()?.is_none() {
            drop(ours);
            let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
            helper::run(&launch, child, theirs);
            sys::process::exit_now(0);
        }
        self.jobs.push(Job { seq: Some(seq), launch, result: ours, stdin, stdout, stderr });
        Ok(())
    }

    /// A helper has spoken, or died silently.
    fn finish(&mut self, job: Job) {
        let mut buffer = vec![0; MAX_PACKET];
        let received = packet::receive(&job.result, &mut buffer).ok().flatten();
        let (outcome, pty) = match received {
            Some((len, fds)) => (serde_json::from_slice(&buffer[..len]).ok(), fds.into_iter().next()),
            None => (None, None),
        };
        self.remove_notify_sockets(&job.launch);
        match outcome {
            Some(Outcome::Started { pid }) => self.started(job, pid, pty),
            Some(Outcome::Failed(failure)) => {
                let answer = Answer::Failed { message: failure.message, exit_code: failure.exit_code };
                self.answer(job.seq, answer, Vec::new());
            }
            None => {
                let message = "the helper of the container runtime died".to_owned();
                self.answer(job.seq, Answer::Failed { message, exit_code: 128 }, Vec::new());
            }
        }
    }

    fn started(&mut self, job: Job, pid: i32, pty: Option<OwnedFd>) {
        let Job { seq, launch, stdin, stdout, stderr, .. } = job;
        if seq.is_none() && launch.exec.is_empty() && self.daemon.is_some() && self.greeting.is_none() {
            // It took longer than the daemon that is there now waited; that one knows nothing of it.
            let _ = sys::process::kill(pid, libc::SIGKILL);
            return;
        }
        let mut process = Process { pid, started_at: sys::clock::now().0, exit: None, stdin, stdout, stderr, pty };
        let stdio = process.stdio();
        let fds = process.fds().into_iter().filter_map(|fd| fd.try_clone_to_owned().ok()).collect();
        if !launch.keep {
            (process.stdin, process.stdout, process.stderr, process.pty) = (None, None, None, None);
        }
        let key = (launch.id, launch.exec);
        self.processes.insert(key.clone(), process);
        self.answer(seq, Answer::Started { pid, stdio }, fds);
        self.reap();
        if let Some(exit) = self.unclaimed.remove(&pid) {
            self.ended(&key, exit);
        }
    }

    /// Takes the status of every child that ended: also libcontainer's intermediates and failed execs, whose zombies would
    /// otherwise hold up the end of a container's pid namespace.
    fn reap(&mut self) {
        loop {
            let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code, 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32, signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let exit = Exit { code, signal, at: sys::clock::now().0 };
            let key = self.processes.iter().find(|(_, p)| p.pid == pid && p.exit.is_none()).map(|(key, _)| key.clone());
            match key {
                Some(key) => self.ended(&key, exit),
                None if !self.jobs.is_empty() => {
                    self.unclaimed.insert(pid, exit);
                }
                None => {}
            }
        }
    }

    fn ended(&mut self, key: &Key, exit: Exit) {
        if key.1.is_empty() {
            self.write_exit(&key.0, exit);
            if let Some(process) = self.processes.get_mut(key) {
                process.exit = Some(exit);
                process.stdin = None;
            }
        } else {
            self.processes.remove(key);
        }
        self.push(&Packet::Notice(Notice::Exited { id: key.0.clone(), exec: key.1.clone(), exit }), Vec::new());
    }

    /// Survives a crash of the supervisor itself, by rename, so that a reader finds all of it or nothing.
    fn write_exit(&self, id: &str, exit: Exit) {
        let target = self.exits.join(id);
        let temporary = self.exits.join(format!(".{id}"));
        if let Ok(text) = serde_json::to_vec(&exit)
            && std::fs::write(&temporary, text).is_ok()
        {
            let _ = std::fs::rename(temporary, target);
        }
    }

    /// Each exec leaves a socket in libcontainer's state directory; without this thousands gather until the delete.
    fn remove_notify_sockets(&self, launch: &Launch) {
        if launch.exec.is_empty() || self.jobs.iter().any(|job| job.launch.id == launch.id) {
            return;
        }
        let Ok(entries) = std::fs::read_dir(Path::new(&launch.state_root).join(&launch.id)) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("tenant-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn answer(&mut self, seq: impl Into<Option<u64>>, answer: Answer, fds: Vec<OwnedFd>) {
        // Another daemon gives the same numbers to other requests.
        if let Some(seq) = seq.into() {
            self.push(&Packet::Answer { seq, answer }, fds);
        }
    }

    fn push(&mut self, packet: &Packet, fds: Vec<OwnedFd>) {
        if self.daemon.is_none() {
            return;
        }
        if self.outgoing.len() >= MAX_OUTGOING {
            self.disconnect();
            return;
        }
        if let Ok(text) = serde_json::to_vec(packet) {
            self.outgoing.push_back((text, fds));
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let (Some(connection), Some((text, fds))) = (&self.daemon, self.outgoing.front()) {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match packet::send(connection, text, &borrowed) {
                Ok(()) => {
                    self.outgoing.pop_front();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.disconnect(),
            }
        }
    }

    fn may_end(&mut self) -> bool {
        let nothing =
            self.daemon.is_none() && self.jobs.is_empty() && self.processes.values().all(|p| p.exit.is_some());
        if !nothing {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() < IDLE {
            return false;
        }
        // Exit codes not taken yet are on disk. The socket goes first: a daemon that finds none starts another one.
        let _ = std::fs::remove_file(self.directory.join("sock"));
        true
    }
}

fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut size = PIPE_BYTES;
    while size > 1 << 16 && rustix::pipe::fcntl_setpipe_size(&write, size).is_err() {
        size /= 4;
    }
    Ok((read, write))
}

/// Away from the daemon's session, directory and stdio, and the last to be killed for memory.
fn detach(directory: &Path) {
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
    let _ = rustix::thread::set_name(c"skep-supervisor");
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("log"));
        let _ = nix::unistd::dup2_stderr(log.as_ref().unwrap_or(&null));
    }
}

fn block_signals() -> std::io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    // A service manager that stops the daemon may signal its whole cgroup; containers are to outlive that.
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        mask.add(signal);
    }
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}
