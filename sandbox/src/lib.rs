//! Turns a process into a compartment.
//!
//! A process opens what it was given, then calls [`Compartment::enter`]. From then on it has no file
//! system, no network, no capabilities, no other process, and only the syscalls of its [`Policy`]. What it needs
//! later comes as file descriptors over the sockets it kept.
//!
//! This crate must never decide *what* a process may do (that is `policies/`), and must never carry on
//! when the seccomp filter could not be installed. All unsafe code is in `sys` and in the acts
//! of [`policy_test`].

#![deny(unsafe_code)]

mod compartment;
pub mod crash;
mod descriptors;
mod empty_root;
mod error;
mod heir;
mod identity;
mod landlocked;
mod namespaces;
mod parent;
pub mod policy_test;
mod report;
pub mod spawn;
mod sys;
mod syscalls;

pub use compartment::{Compartment, Ids, exit_on_panic, restrict_thread};
pub use error::Error;
pub use namespaces::{Kind, Namespaces, Want};
pub use policies::{self, Policy};
pub use report::{Done, Entered};
