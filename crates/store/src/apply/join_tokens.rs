//! Join tokens that end. They are counted here, in the log's order, so that two managers cannot let two hosts in for one use.

use skep_model::JoinTokenId;
use skep_model::cluster::LimitedToken;

use super::{Done, Entry};
use crate::refused::Refused;

/// Tokens kept at once. When so many are there those that have ended make room.
const MAX_JOIN_TOKENS: usize = 1000;

impl Entry {
    pub(super) fn create_join_token(&mut self, token: &LimitedToken) -> Done {
        if self.view.join_tokens.contains_key(&token.id) {
            return Err(Refused::NameConflict(format!("join token {} already exists", token.id)));
        }
        if self.view.join_tokens.len() >= MAX_JOIN_TOKENS {
            let at = self.at;
            let ended: Vec<_> =
                self.view.join_tokens.values().filter(|t| t.refusal(at).is_some()).map(|t| t.id.clone()).collect();
            for id in ended {
                self.view.join_tokens.remove(&id);
            }
        }
        if self.view.join_tokens.len() >= MAX_JOIN_TOKENS {
            return Err(Refused::Invalid(format!(
                "there are {MAX_JOIN_TOKENS} join tokens already: remove some with \"skep swarm join-token rm\""
            )));
        }
        self.view.join_tokens.insert(token.id.clone(), token.clone());
        Ok(())
    }

    pub(super) fn spend_join_token(&mut self, id: &JoinTokenId) -> Done {
        let Some(token) = self.view.join_tokens.get(id) else { return Err(Refused::not_found("join token", id)) };
        if let Some(reason) = token.refusal(self.at) {
            return Err(Refused::Invalid(reason));
        }
        let token = LimitedToken { used: token.used.saturating_add(1), ..token.clone() };
        self.view.join_tokens.insert(id.clone(), token);
        Ok(())
    }
}
