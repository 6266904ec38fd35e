//! Whether a host is there at all. A daemon that is paused or overloaded answers nothing, but its kernel completes a
//! connection to a port that is listened on, and refuses one to a port that is not; only a host that is off, or cut off,
//! says nothing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use skep_control::dispatch::Knock;
use tokio::net::{TcpListener, TcpStream};

/// A kernel answers in a round trip; this is one around the world.
const SOON: Duration = Duration::from_millis(200);
/// An answer is taken for so long after it was due.
const LATE: Duration = Duration::from_secs(1);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Knocks once and tells what became of it; a late answer is told as well.
pub(crate) async fn knock(at: SocketAddr, mut tell: impl AsyncFnMut(Knock)) {
    let mut connect = std::pin::pin!(TcpStream::connect(at));
    let answer = match tokio::time::timeout(SOON, &mut connect).await {
        Ok(answer) => answer,
        Err(_) => {
            tell(Knock::Unanswered).await;
            match tokio::time::timeout(LATE, connect).await {
                Ok(answer) => answer,
                Err(_) => return,
            }
        }
    };
    tell(match answer {
        Ok(_) => Knock::Open,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Knock::Refused,
        Err(_) => Knock::Unanswered,
    })
    .await;
}

/// Opens the door and says nothing: that there is one is all a knock asks.
pub(super) async fn answer(door: TcpListener) {
    loop {
        if door.accept().await.is_err() {
            tokio::time::sleep(ACCEPT_RETRY).await;
        }
    }
}
