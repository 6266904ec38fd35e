//! Overlay networks on this host: each a namespace with a bridge and a VXLAN link, and the veth pairs into containers.
//!
//! Decides how one overlay looks in the kernel. Must not know about services or published ports: the balancing rules are
//! made in [`crate::balance`], the mesh in [`crate::ingress`]; [`crate::dataplane`] drives all three.
