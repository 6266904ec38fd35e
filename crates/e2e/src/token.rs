//! A registry with a token server (distribution `docs/spec/auth/token.md`): a gate in this process before the one in the lab.
//! It knows the user `bee` with the password `honey`; nobody else gets in.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Lab, Registry};

const SERVICE: &str = "hive";
/// `bee:honey`.
const BASIC: &str = "Basic YmVlOmhvbmV5";
/// Requests a token is good for, unless it is to end sooner.
const MANY: usize = 1_000_000;

pub struct TokenRegistry {
    gate: Arc<Gate>,
    address: SocketAddr,
    _registry: Registry,
}

struct Gate {
    behind: SocketAddr,
    address: SocketAddr,
    tokens: Mutex<BTreeMap<String, Token>>,
    /// The scopes that were granted to the user, in order.
    granted: Mutex<Vec<String>>,
    uses: AtomicUsize,
}

struct Token {
    /// `repository:NAME:pull,push`, none for somebody unknown.
    scopes: Vec<String>,
    left: usize,
}

/// The head of a request, and what came with it of its body.
struct Head {
    text: String,
    rest: Vec<u8>,
}

impl Head {
    fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        let end = loop {
            let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
            bytes.extend_from_slice(&buffer[..length]);
            // Somebody tries TLS first.
            if !bytes[0].is_ascii_uppercase() {
                return None;
            }
            if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
        };
        let rest = bytes.split_off(end + 4);
        Some(Self { text: String::from_utf8(bytes).ok()?, rest })
    }

    fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)).is_some();
        self.text.lines().find(|line| of(line)).and_then(|line| Some(line.split_once(':')?.1.trim()))
    }

    fn method_and_target(&self) -> (&str, &str) {
        let mut words = self.text.split(' ');
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }
}

impl TokenRegistry {
    /// The lab's hosts take it for insecure, and there is no other registry in the lab.
    pub fn start(lab: &Lab) -> Self {
        let registry = Registry::start(lab);
        let behind: SocketAddr = format!("{}:5000", lab.address(1)).parse().expect("an address");
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        // The address by which the hosts know this machine.
        let probe = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        probe.connect(behind).expect("a route to the lab");
        let port = listener.local_addr().expect("an address").port();
        let address = SocketAddr::new(probe.local_addr().expect("an address").ip(), port);
        let gate = Arc::new(Gate {
            behind,
            address,
            tokens: Mutex::default(),
            granted: Mutex::default(),
            uses: AtomicUsize::new(MANY),
        });
        let serving = gate.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let gate = serving.clone();
                std::thread::spawn(move || gate.serve(stream));
            }
        });
        Self { gate, address, _registry: registry }
    }

    /// What the name of an image there begins with.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// From now on a token is good for so many requests.
    pub fn tokens_end_after(&self, requests: usize) {
        self.gate.uses.store(requests, Ordering::Relaxed);
    }

    /// The scopes granted to the user since the last call.
    pub fn granted(&self) -> Vec<String> {
        std::mem::take(&mut *self.gate.granted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Gate {
    /// One request a connection.
    fn serve(&self, mut client: TcpStream) {
        let Some(head) = Head::read(&mut client) else { return };
        let (method, target) = head.method_and_target();
        if let Some(query) = target.strip_prefix("/token?") {
            let answer = self.token(query, head.header("authorization"));
            let _ = client.write_all(answer.as_bytes());
            return;
        }
        let path = target.split('?').next().unwrap_or_default();
        match self.refusal(method, path, head.header("authorization")) {
            Some(answer) => {
                // A client that is still sending would not read the answer.
                let length = head.header("content-length").and_then(|l| l.parse::<usize>().ok()).unwrap_or_default();
                let mut left = length.saturating_sub(head.rest.len());
                let mut buffer = vec![0; 64 * 1024];
                while left > 0
                    && let Ok(read @ 1..) = client.read(&mut buffer)
                {
                    left = left.saturating_sub(read);
                }
                let _ = client.write_all(answer.as_bytes());
            }
            None => drop(self.pass_on(&head, client)),
        }
    }

    fn pass_on(&self, head: &Head, mut client: TcpStream) -> std::io::Result<()> {
        let mut registry = TcpStream::connect(self.behind)?;
        // It closes when it has answered, and knows nothing of tokens.
        let theirs = ["connection:", "authorization:"];
        let kept = |line: &&str| !theirs.iter().any(|name| line.to_ascii_lowercase().starts_with(name));
        let lines: Vec<&str> = head.text.trim_end().split("\r\n").filter(kept).collect();
        write!(registry, "{}\r\nConnection: close\r\n\r\n", lines.join("\r\n"))?;
        registry.write_all(&head.rest)?;
        let (mut from, mut to) = (client.try_clone()?, registry.try_clone()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
        });
        std::io::copy(&mut registry, &mut client)?;
        client.shutdown(Shutdown::Both)
    }

    fn token(&self, query: &str, authorization: Option<&str>) -> String {
        let decoded = query.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let of =
            |key: &str| decoded.split('&').filter_map(|part| part.split_once('=')).filter(|(k, _)| *k == key).count();
        if of("service") != 1 || !decoded.contains(&format!("service={SERVICE}")) {
            return answer("400 Bad Request", "", r#"{"details":"of which service?"}"#);
        }
        if authorization.is_some_and(|text| text != BASIC) {
            return answer("401 Unauthorized", "", r#"{"details":"incorrect username or password"}"#);
        }
        let mut scopes = Vec::new();
        if authorization.is_some() {
            scopes.extend(decoded.split('&').filter_map(|part| part.strip_prefix("scope=")).map(str::to_owned));
            self.granted.lock().unwrap_or_else(PoisonError::into_inner).extend(scopes.iter().cloned());
        }
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("token-{}", tokens.len());
        tokens.insert(name.clone(), Token { scopes, left: self.uses.load(Ordering::Relaxed) });
        answer("200 OK", "", &format!(r#"{{"token":"{name}","expires_in":300}}"#))
    }

    /// Why a request to the registry is not passed on.
    fn refusal(&self, method: &str, path: &str, authorization: Option<&str>) -> Option<String> {
        let action = if matches!(method, "GET" | "HEAD") { "pull" } else { "push" };
        let repository = ["/blobs/", "/manifests/", "/tags/"].iter().find_map(|part| path.split_once(part));
        let repository = repository.and_then(|(before, _)| before.strip_prefix("/v2/"));
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = authorization.and_then(|text| tokens.get_mut(text.strip_prefix("Bearer ")?));
        let grants = |token: &Token, repository: &str| {
            token.scopes.iter().any(|scope| {
                let actions = scope.strip_prefix(&format!("repository:{repository}:")).unwrap_or_default();
                actions.split(',').any(|a| a == action)
            })
        };
        let why = match (token, repository) {
            (Some(token), _) if token.left == 0 => ",error=\"invalid_token\"",
            (Some(token), Some(repository)) if !grants(token, repository) => ",error=\"insufficient_scope\"",
            (Some(token), _) => {
                token.left -= 1;
                return None;
            }
            (None, _) => "",
        };
        let scope = repository.map(|r| {
            let actions = if action == "pull" { "pull" } else { "pull,push" };
            format!(",scope=\"repository:{r}:{actions}\"")
        });
        let (address, scope) = (self.address, scope.unwrap_or_default());
        let challenge =
            format!("WWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"{SERVICE}\"{scope}{why}\r\n");
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Some(answer("401 Unauthorized", &challenge, body))
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
