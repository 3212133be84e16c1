//! The network: what NICs are connected to, and `bulkhead net`.
//!
//! * [`backend`]: the descriptors of a NIC's other end, opened once, and the `passt` behind it; [`tun`] opens TAPs
//! * [`holder`]: the same for a VM that systemd runs, as a process of its own
//! * [`command`]: the command line, `ls` what it shows; [`switch`] and [`port`]: bridges and ports; [`limit`]: how much goes through them, unless
//!   somebody else sees to that ([`others`])
//! * [`netlink`]: how the kernel is asked; [`rate`]: amounts of traffic
//!
//! No frame passes through here: this module must never read from an interface or write to one.

pub mod backend;
pub mod command;
pub mod holder;
mod htb;
pub mod limit;
mod ls;
pub mod netlink;
mod others;
pub mod port;
pub mod rate;
pub mod switch;
pub mod tun;
