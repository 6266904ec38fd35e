//! `/skep/join-tokens`: ours, in the manner of Docker's.

use serde::{Deserialize, Serialize};
use skep_model::Timestamp;
use skep_model::cluster::LimitedToken;

use crate::GoTime;
use crate::node::role_word;

/// `POST /skep/join-tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CreateRequest {
    /// `worker` or `manager`.
    pub role: String,
    /// 0 is without end.
    #[serde(rename = "TTLSeconds")]
    pub ttl_seconds: u64,
    /// 0 is any number.
    pub uses: u32,
}

/// Its answer: the only time the token is shown.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    #[serde(rename = "ID")]
    pub id: String,
    pub token: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct JoinToken {
    #[serde(rename = "ID")]
    pub id: String,
    pub role: String,
    pub created_at: GoTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<GoTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    pub used: u32,
    /// Whether a host can join with it.
    pub usable: bool,
}

impl JoinToken {
    pub fn new(token: &LimitedToken, now: Timestamp) -> Self {
        Self {
            id: token.id.to_string(),
            role: role_word(token.role).into(),
            created_at: token.created_at.into(),
            expires_at: token.expires_at.map(Into::into),
            uses: token.uses,
            used: token.used,
            usable: token.refusal(now).is_none(),
        }
    }
}
