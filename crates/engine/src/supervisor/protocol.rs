//! What daemon and supervisor say to each other, one JSON object a packet (`SOCK_SEQPACKET`), file descriptors beside it.
//!
//! The supervisor lives longer than the daemon and is not always of the same version: fields are only ever added, and an
//! unknown field is ignored.

use serde::{Deserialize, Serialize};

/// Raised when an old daemon could not talk to a new supervisor, or the other way round.
pub const PROTOCOL: u32 = 1;
/// No packet is larger; a request that would be is refused before it is sent.
pub const MAX_PACKET: usize = 64 * 1024;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    pub seq: u64,
    #[serde(flatten)]
    pub op: Op,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Answered by [`Answer::Hello`], after a [`Notice::Known`] for every container.
    Hello,
    /// Create and start a container; answered by `Started` with its stdio, or `Failed`.
    Run(Launch),
    /// Run a further process in a running container.
    Exec(Launch),
    /// `exec` empty means the container's init.
    Signal { id: String, exec: String, signal: i32 },
    /// Drop the supervisor's copy of the stdin pipe, so that the process reads its end.
    CloseStdin { id: String },
    /// The daemon has drained the output: drop what is kept of a process.
    Forget { id: String, exec: String },
    /// Kill the container once the host has been up for so long, unless a later lease comes first. It may not have started
    /// yet; one whose lease is over does not start.
    Lease { id: String, until_ms: u64 },
    /// Replace the program in place (`execve`), keeping every child and descriptor.
    Upgrade { exe: String },
    /// Exit if there is nothing to watch.
    Quit,
}

/// How to start a process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Launch {
    pub id: String,
    /// Empty for the container's init.
    pub exec: String,
    /// Directory of `config.json`.
    pub bundle: String,
    /// Directory under which libcontainer keeps its state.
    pub state_root: String,
    /// `process.json` of an exec.
    pub process: String,
    pub tty: bool,
    /// With a pipe for stdin; otherwise `/dev/null`.
    pub stdin: bool,
    /// With pipes for stdout and stderr; otherwise `/dev/null`.
    pub output: bool,
    /// The supervisor keeps the pipes open until `Forget`, so that a daemon that comes back finds them. Not for execs.
    pub keep: bool,
    /// cgroup v2: the container's directory, to which its device rules are attached before it starts. Empty on v1, whose
    /// controller takes them from the specification.
    pub device_cgroup: String,
    pub security: Security,
}

/// What our executor does to itself right before `execve`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// Bit set of the capabilities left: bounding, permitted and effective.
    pub capabilities: u64,
    /// File with compiled BPF; empty means unconfined.
    pub seccomp: String,
    pub no_new_privileges: bool,
    /// Mounts in the container, and how what is mounted there later spreads: libcontainer leaves binds as they come.
    pub propagation: Vec<(String, String)>,
    /// Directories in the container whose files, as they are now, become read-only. Only for a supervisor whose
    /// [`Answer::Hello`] says that it seals.
    pub sealed: Vec<String>,
    pub rlimits: Vec<Rlimit>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Hello {
        protocol: u32,
        version: String,
        pid: i32,
        /// Heeds [`Security::sealed`].
        #[serde(default)]
        seals: bool,
    },
    /// With descriptors as [`Stdio`] says.
    Started {
        pid: i32,
        stdio: Stdio,
    },
    Failed {
        message: String,
        exit_code: i32,
    },
    Done,
    Refused {
        message: String,
    },
}

/// Which descriptors come along, in this order: stdin (write end), stdout, stderr (read ends); or the pty master alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    pub stdin: bool,
    pub output: bool,
    pub pty: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As a shell says it: 128 + signal for killed ones.
    pub code: i32,
    pub signal: i32,
    /// Nanoseconds since 1970.
    pub at: i64,
}

/// Unasked-for news.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
pub enum Notice {
    /// A container it holds, with its stdio.
    Known {
        id: String,
        pid: i32,
        started_at: i64,
        exit: Option<Exit>,
        stdio: Stdio,
    },
    Exited {
        id: String,
        exec: String,
        exit: Exit,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Packet {
    Answer {
        seq: u64,
        #[serde(flatten)]
        answer: Answer,
    },
    Notice(Notice),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_apart() {
        let answer = Packet::Answer { seq: 3, answer: Answer::Started { pid: 7, stdio: Stdio::default() } };
        let text = serde_json::to_string(&answer).unwrap();
        assert!(matches!(
            serde_json::from_str(&text).unwrap(),
            Packet::Answer { seq: 3, answer: Answer::Started { pid: 7, .. } }
        ));
        let notice = Packet::Notice(Notice::Exited {
            id: "a".into(),
            exec: String::new(),
            exit: Exit { code: 1, signal: 0, at: 5 },
        });
        let text = serde_json::to_string(&notice).unwrap();
        assert!(matches!(serde_json::from_str(&text).unwrap(), Packet::Notice(Notice::Exited { .. })));
        let request = Request { seq: 1, op: Op::Run(Launch { id: "x".into(), ..Launch::default() }) };
        let text = serde_json::to_string(&request).unwrap();
        assert!(matches!(serde_json::from_str::<Request>(&text).unwrap().op, Op::Run(l) if l.id == "x"));
    }
}
