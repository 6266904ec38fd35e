//! Whole hosts in namespaces: an underlay switch, hosts with data planes, containers, an outside client.

mod encrypted;
mod hammer;
mod mesh;
mod overlays;
mod repair;
mod six;
mod world;
