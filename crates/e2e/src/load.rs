//! Clients that ask hosts in turn, a connection each, at a steady pace: what was answered, how fast, and what was lost.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A request that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of one request: how long it took, or why it was lost.
pub type Outcome = Result<Duration, String>;

/// Goes on until dropped.
pub struct Load {
    over: Arc<AtomicBool>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// `clients`, each with a request every `pace`; one that was late catches up.
    pub fn start(
        clients: usize,
        pace: Duration,
        hosts: &[SocketAddr],
        request: fn(SocketAddr) -> std::io::Result<()>,
    ) -> Self {
        let mut load = Self { over: Arc::default(), outcomes: Arc::default(), clients: Vec::new() };
        for client in 0..clients {
            let (over, outcomes, hosts) = (load.over.clone(), load.outcomes.clone(), hosts.to_vec());
            load.clients.push(std::thread::spawn(move || {
                let mut next = Instant::now();
                for turn in client.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (host, begun) = (hosts[turn % hosts.len()], Instant::now());
                    let outcome = match request(host) {
                        Ok(()) => Ok(begun.elapsed()),
                        Err(error) => Err(format!("{host} after {:?}: {error}", begun.elapsed())),
                    };
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                    next += pace;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }));
        }
        load
    }

    /// What came of every request since the last call.
    pub fn take(&self) -> Vec<Outcome> {
        std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many have been answered since the last [`take`](Self::take), and what was lost.
    pub fn so_far(&self) -> (usize, Vec<String>) {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let lost: Vec<String> = outcomes.iter().filter_map(|outcome| outcome.clone().err()).collect();
        (outcomes.len() - lost.len(), lost)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

/// A connection a request to `skep/whoami`, as a client without keep-alive has it; answered whole.
pub fn get(host: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&host, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let whole = answer.starts_with("HTTP/1.1 200 OK") && answer.contains("Host: web");
    whole.then_some(()).ok_or_else(|| std::io::Error::other(format!("an answer of {} bytes", answer.len())))
}
