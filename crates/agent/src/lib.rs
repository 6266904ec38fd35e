
pub mod dns;
