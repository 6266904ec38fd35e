//! The accept loop, and what is the same for every request: the version in the path, common headers, and that a change
//! once begun is finished though its client has gone.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, Response, Uri, header};
use axum::response::IntoResponse;
use hyper::body::Incoming as IncomingBody;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use skep_api::version::{NEWEST, split_path};
use skep_node::audit;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::error::ApiError;
use crate::listen::Listener;
use crate::remote;
use crate::router::router;
use crate::state::ServerState;

/// How long running requests may take to end once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take over the head of a request, as with dockerd, and rest before it.
const HEAD_DEADLINE: Duration = Duration::from_secs(300);

pub struct Server;

impl Server {
    /// Serves until `stop`; then takes no more connections, ends streams and waits a little for requests under way.
    pub async fn run(listeners: Vec<Listener>, state: ServerState, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let app = App { router: router(state.clone()), state: state.clone(), for_managers: false };
        let mut loops = tokio::task::JoinSet::new();
        for listener in listeners {
            loops.spawn(accept_loop(listener, app.clone(), stop.clone(), connections.clone()));
        }
        loops.spawn(answer_managers(state.node().connections(), app.clone(), stop.clone(), connections.clone()));
        while loops.join_next().await.is_some() {}
        state.stop().cancel();
        connections.close();
        state.work().close();
        let drained = async {
            connections.wait().await;
            state.work().wait().await;
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!(connections = connections.len(), "gave up waiting for requests to end");
        }
    }
}

async fn accept_loop(listener: Listener, app: App, stop: CancellationToken, connections: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(incoming) => {
                let (app, stop) = (app.clone(), stop.clone());
                connections.spawn(async move {
                    match incoming.establish().await {
                        Ok(connection) => {
                            let requester = connection.requester();
                            serve(connection, requester, app, stop).await;
                        }
                        Err(error) => tracing::debug!(%error, "connection not established"),
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: give others time to close theirs.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
        }
    }
}

/// Managers ask about the containers here, on connections that the node made; nothing else.
async fn answer_managers(
    asking: Option<mpsc::Receiver<DuplexStream>>,
    app: App,
    stop: CancellationToken,
    connections: TaskTracker,
) {
    let Some(mut asking) = asking else { return };
    let app = App { for_managers: true, ..app };
    while let Some(Some(connection)) = stop.run_until_cancelled(asking.recv()).await {
        connections.spawn(serve(connection, "a manager of the swarm".into(), app.clone(), stop.clone()));
    }
}

fn protocol() -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    protocol
}

/// Serves one connection. hyper's half-close stays off: it is what tells us that a client waiting for a quiet stream is
/// gone. Hijacked connections are not under hyper any more and half-close by themselves.
async fn serve<C>(connection: C, requester: String, app: App, stop: CancellationToken)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let (app, requester) = (app.clone(), requester.clone());
        async move { app.answer(request, requester).await }
    });
    let connection = protocol().serve_connection(TokioIo::new(connection), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

#[derive(Clone)]
struct App {
    router: Router,
    state: ServerState,
    /// On connections of managers, who ask about containers alone.
    for_managers: bool,
}

impl App {
    async fn answer(&self, request: Request<IncomingBody>, requester: String) -> Result<Response<Body>, Infallible> {
        let mut request = request.map(Body::new);
        let mut response = match strip_version(&mut request) {
            Ok(()) => self.route(request, requester).await,
            Err(error) => error.into_response(),
        };
        let headers = response.headers_mut();
        let mut set = |name: &'static str, value: HeaderValue| {
            headers.entry(name).or_insert(value);
        };
        set("api-version", HeaderValue::from_static(NEWEST_TEXT));
        set("docker-experimental", HeaderValue::from_static("false"));
        set("ostype", HeaderValue::from_static("linux"));
        let server = format!("skep/{} (linux)", self.state.about().version);
        if let Ok(value) = HeaderValue::from_str(&server) {
            set(header::SERVER.as_str(), value);
        }
        Ok(response)
    }

    /// A read is dropped with its connection. A change runs on: a client that goes away in the middle of a create or start
    /// must not leave half of one.
    async fn route(&self, request: Request<Body>, requester: String) -> Response<Body> {
        let request = if self.for_managers {
            if !remote::may_be_asked(request.uri().path()) {
                return ApiError::not_found("page not found").into_response();
            }
            request
        } else {
            match remote::forward(&self.state, request).await {
                Ok(response) => return response,
                Err(request) => request,
            }
        };
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let call = self.router.clone().oneshot(request);
        if reads {
            return infallible(call.await);
        }
        match self.state.work().spawn(audit::by(requester, call)).await {
            Ok(result) => infallible(result),
            Err(error) => {
                tracing::error!(%error, "a request's handler ended abnormally");
                ApiError::internal("internal error: the request's handler ended abnormally").into_response()
            }
        }
    }
}

/// [`NEWEST`] as header text.
const NEWEST_TEXT: &str = "1.51";

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

/// Takes `/v1.NN` off the path, checks it and leaves the version as an extension.
fn strip_version(request: &mut Request<Body>) -> Result<(), ApiError> {
    let (version, rest) = split_path(request.uri().path());
    let version = match version {
        None => NEWEST,
        Some(version) => version.check()?,
    };
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let uri: Uri = path_and_query.parse().map_err(|_| ApiError::invalid("malformed request path"))?;
    *request.uri_mut() = uri;
    request.extensions_mut().insert(version);
    Ok(())
}

#[cfg(test)]
mod tests {
    use skep_api::ApiVersion;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn request(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_rests_for_minutes_is_still_served() {
        let (mut client, server) = tokio::io::duplex(1024);
        let service = hyper::service::service_fn(async |_| Ok::<_, Infallible>(Response::new(String::new())));
        let served = tokio::spawn(protocol().serve_connection(TokioIo::new(server), service));
        for _ in 0..2 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
            let mut answer = [0; 512];
            let length = client.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"));
            tokio::time::sleep(Duration::from_secs(200)).await;
        }
        served.abort();
    }

    #[test]
    fn the_version_is_taken_off_the_path() {
        let mut r = request("/v1.41/containers/json?all=1");
        strip_version(&mut r).unwrap();
        assert_eq!(r.uri(), "/containers/json?all=1");
        assert_eq!(r.extensions().get::<ApiVersion>(), Some(&ApiVersion::new(1, 41)));
        let mut r = request("/_ping");
        strip_version(&mut r).unwrap();
        assert_eq!(r.extensions().get::<ApiVersion>(), Some(&NEWEST));
    }

    #[test]
    fn versions_out_of_range_are_refused() {
        assert_eq!(strip_version(&mut request("/v1.60/info")).unwrap_err().status, 400);
        assert_eq!(strip_version(&mut request("/v1.10/info")).unwrap_err().status, 400);
        assert_eq!(NEWEST.to_string(), NEWEST_TEXT);
    }
}
