//! `/events`: what happens on this host and, on a manager, in the swarm, as it happens.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use futures_util::{Stream, StreamExt, stream};
use skep_api::event::Message;
use skep_api::time::parse_moment;
use skep_engine::{EngineEvent, EventKind};
use skep_node::SwarmEvent;
use tokio_stream::wrappers::BroadcastStream;

use crate::error::{ApiError, Result};
use crate::extract::Params;
use crate::state::{ServerState, now};
use crate::stream::lines::{line, streamed};

pub(crate) fn routes() -> Router<ServerState> {
    Router::new().route("/events", get(events))
}

fn local(event: EngineEvent) -> Message {
    let kind = match event.kind {
        EventKind::Container => "container",
        EventKind::Image => "image",
        EventKind::Volume => "volume",
        EventKind::Network => "network",
        EventKind::Daemon => "daemon",
    };
    Message::new(kind, &event.action, &event.actor_id, event.attributes, "local", event.time)
}

fn swarm(event: SwarmEvent) -> Message {
    Message::new(event.kind.as_str(), event.action.as_str(), &event.id, event.attributes, "swarm", event.at)
}

/// A listener too slow to follow loses events; it is told in the log, since the protocol has no word for it.
fn followed<T, E>(item: Result<T, E>) -> std::future::Ready<Option<T>>
where
    E: std::fmt::Display,
{
    std::future::ready(match item {
        Ok(event) => Some(event),
        Err(error) => {
            tracing::warn!(%error, "a listener of events was too slow");
            None
        }
    })
}

const FILTERS: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

async fn events(State(state): State<ServerState>, query: Params) -> Result<Response> {
    let filters = query.filters()?;
    filters.validate(&FILTERS)?;
    let since = parse_moment(query.text("since"), now())?;
    let until = parse_moment(query.text("until"), now())?;
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(ApiError::invalid(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            query.text("since"),
            query.text("until")
        )));
    }
    let (past, engine) = state.engine().events().subscribe(since);
    let swarm_events = BroadcastStream::new(state.node().subscribe()).filter_map(followed).map(swarm);
    let engine_events = BroadcastStream::new(engine).filter_map(followed).map(local);
    let coming = stream::select(engine_events, swarm_events);
    let body = stream::iter(past).map(local).chain(coming).filter_map(move |message| {
        let shown = message.passes(&filters) && until.is_none_or(|until| message.time_nano <= until.0);
        std::future::ready(shown.then(|| line(&message)))
    });
    Ok(match until {
        None => streamed("application/json", body, state.stop()),
        Some(until) => streamed("application/json", ending(body, until.since(now())), state.stop()),
    })
}

fn ending<S: Stream>(stream: S, after: Duration) -> impl Stream<Item = S::Item> {
    stream.take_until(tokio::time::sleep(after))
}
