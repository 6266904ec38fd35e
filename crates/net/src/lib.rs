pub mod link;
pub mod dataplane;
pub mod ingress;
pub mod nft;
pub mod overlay;
