//! What differs between the IP versions for rules and tracked connections.

use std::fmt::{Debug, Display};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Bytes, DataType, Expr, Family, Reg};
use crate::nft::expr::PayloadBase;

/// An address of either IP version.
pub trait Address: Copy + Ord + Debug + Display + 'static {
    /// Of the tables that see its packets; the number is also that of its sockets.
    const FAMILY: Family;
    const TYPE: DataType;
    /// `address . inet_proto`, each padded to four bytes.
    const WITH_PROTOCOL: DataType;
    const LENGTH: u32;
    /// The register after those of an address in the first one.
    const NEXT: Reg;
    /// Where an IP header has the source.
    const SOURCE: u32;
    /// `CTA_IP_V4_SRC`, `CTA_IP_V6_SRC`; the destination is the next.
    const TRACKED_SOURCE: u16;

    fn bytes(self) -> Bytes;
    /// Of as many bytes as it has.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;

    /// `ip saddr`
    fn load_source() -> Expr {
        Expr::Payload { base: PayloadBase::Network, offset: Self::SOURCE, length: Self::LENGTH, to: Reg(0) }
    }

    /// `ip daddr`
    fn load_destination() -> Expr {
        let offset = Self::SOURCE + Self::LENGTH;
        Expr::Payload { base: PayloadBase::Network, offset, length: Self::LENGTH, to: Reg(0) }
    }
}

impl Address for Ipv4Addr {
    const FAMILY: Family = Family::Ip;
    const TYPE: DataType = DataType::IPV4;
    const WITH_PROTOCOL: DataType = DataType::IPV4_PROTOCOL;
    const LENGTH: u32 = 4;
    const NEXT: Reg = Reg(1);
    const SOURCE: u32 = 12;
    const TRACKED_SOURCE: u16 = 1;

    fn bytes(self) -> Bytes {
        Bytes::from_slice(&self.octets())
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        <[u8; 4]>::try_from(bytes).ok().map(Self::from)
    }
}

impl Address for Ipv6Addr {
    const FAMILY: Family = Family::Ip6;
    const TYPE: DataType = DataType::IPV6;
    const WITH_PROTOCOL: DataType = DataType::IPV6_PROTOCOL;
    const LENGTH: u32 = 16;
    const NEXT: Reg = Reg(4);
    const SOURCE: u32 = 8;
    const TRACKED_SOURCE: u16 = 3;

    fn bytes(self) -> Bytes {
        Bytes::from_slice(&self.octets())
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        <[u8; 16]>::try_from(bytes).ok().map(Self::from)
    }
}
