//! The hosts' network as they see it themselves: who is asked what, and what is wrong.

use skep_control::doctor::{self, Asked};
use skep_model::doctor::{Diagnosis, ProbeRequest};

use super::Node;
use crate::error::Result;

impl Node {
    /// What every host of the swarm that can be asked is to try, all at the same time.
    pub fn doctor_requests(&self) -> Result<Vec<(Asked, ProbeRequest)>> {
        Ok(doctor::requests(&self.view()?, rand::random()))
    }

    /// What is wrong, by what they found.
    pub fn doctor_diagnosis(&self, asked: &[Asked]) -> Result<Diagnosis> {
        Ok(doctor::diagnose(&self.view()?, asked))
    }
}
