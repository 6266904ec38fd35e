//! `/events`: what happens on this host and, on a manager, in the swarm, as it happens.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use skep_api::event::Message;
use skep_api::time::parse_moment;
use skep_engine::{EngineEvent, EventKind};
use skep_node::{EventFeed, EventsFrom, SwarmEvent};
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
    let cursor = event.cursor.to_string();
    let message =
        Message::new(event.kind.as_str(), event.action.as_str(), &event.id, event.attributes, "swarm", event.at);
    Message { cursor, ..message }
}

/// The swarm's events as they come. Where some were missed a listener with a cursor is cut off, so that it takes up again.
fn coming(feed: EventFeed, has_cursor: bool) -> impl Stream<Item = Message> {
    let whole = BroadcastStream::new(feed)
        .take_while(move |item| std::future::ready(matches!(item, Ok(Some(_))) || !has_cursor));
    whole.filter_map(followed).filter_map(std::future::ready).map(swarm)
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
    let cursor = query.text("cursor");
    let from = match since {
        _ if !cursor.is_empty() => EventsFrom::Cursor(cursor.parse()?),
        Some(since) => EventsFrom::Time(since),
        None => EventsFrom::Now,
    };
    let (past, engine) = state.engine().events().subscribe(since);
    let (swarms_past, feed) = state.node().events(from)?;
    let mut past: Vec<Message> = past.into_iter().map(local).chain(swarms_past.into_iter().map(swarm)).collect();
    // With a cursor only the swarm's are past, and their order is the log's.
    if cursor.is_empty() {
        past.sort_by_key(|message| message.time_nano);
    }
    let engine_events = BroadcastStream::new(engine).filter_map(followed).map(local);
    let events: BoxStream<'static, Message> = match cursor.is_empty() {
        true => stream::select(engine_events, coming(feed, false)).boxed(),
        // Ends with the swarm's: they are what the listener came for.
        false => coming(feed, true).boxed(),
    };
    let events = match until {
        None => events,
        Some(until) => ending(events, until.since(now())).boxed(),
    };
    let body = stream::iter(past).chain(events).filter_map(move |message| {
        let shown = message.passes(&filters) && until.is_none_or(|until| message.time_nano <= until.0);
        std::future::ready(shown.then(|| line(&message)))
    });
    Ok(streamed("application/json", body, state.stop()))
}

fn ending<S>(stream: S, after: Duration) -> impl Stream<Item = S::Item> + Send
where
    S: Stream + Send,
{
    stream.take_until(tokio::time::sleep(after))
}
