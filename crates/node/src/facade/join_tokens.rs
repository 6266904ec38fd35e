//! `skep swarm join-token …`: join tokens that end. Docker's two live until they are rotated.

use std::time::Duration;

use skep_model::JoinTokenId;
use skep_model::cluster::LimitedToken;
use skep_model::node::Role;
use skep_store::{Batch, Change};

use super::Node;
use crate::ca::{new_token, secret_digest};
use crate::clock::now;
use crate::error::{NodeError, Result};

impl Node {
    /// The token itself is in this answer and nowhere else.
    pub async fn join_token_create(
        &self,
        role: Role,
        life: Option<Duration>,
        uses: Option<u32>,
    ) -> Result<(LimitedToken, String)> {
        let manager = self.inner.manager()?;
        let view = manager.view();
        let cluster = view.cluster().ok_or(NodeError::NoSwarm)?;
        if uses == Some(0) || life.is_some_and(|life| life.is_zero()) {
            return Err(NodeError::Invalid(
                "a join token must live for some time and be good for at least one join".into(),
            ));
        }
        let text = new_token(&cluster.root_ca.digest)?;
        let created_at = now();
        let token = LimitedToken {
            id: JoinTokenId::from_bits(rand::random()),
            role,
            secret_digest: secret_digest(&text),
            created_at,
            expires_at: life.map(|life| created_at.plus(life)),
            uses,
            used: 0,
        };
        manager.propose(Batch::new(created_at, vec![Change::CreateJoinToken(token.clone())])).await?;
        Ok((token, text))
    }

    /// Those that have ended stay until they are removed, and say so.
    pub fn join_tokens(&self) -> Result<Vec<LimitedToken>> {
        let mut tokens: Vec<_> = self.view()?.join_tokens().cloned().collect();
        tokens.sort_by_key(|token| token.created_at);
        Ok(tokens)
    }

    /// By id, or an unambiguous beginning of it.
    pub async fn join_token_remove(&self, reference: &str) -> Result<()> {
        let manager = self.inner.manager()?;
        let matching: Vec<_> =
            self.join_tokens()?.into_iter().filter(|t| t.id.as_str().starts_with(reference)).collect();
        match matching.as_slice() {
            [token] => {
                let change = Change::RemoveJoinToken(token.id.clone());
                manager.propose(Batch::new(now(), vec![change])).await.map(drop)
            }
            [] => Err(NodeError::NotFound { object: "join token", name: reference.to_owned() }),
            many => Err(NodeError::Ambiguous { object: "join token", name: reference.to_owned(), count: many.len() }),
        }
    }
}
