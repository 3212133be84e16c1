//! `bench net`: two network stacks with a guest and its `vsp-net` between them, beside the same stacks with a plain loop between
//! their TAPs, in turns. In the lab: a stock guest's TCP beside that of the same guest on QEMU.
//!
//! * [`side`]: the program that measures
//! * [`native`]: the rounds and what is made of them
//! * [`lab`]: in the lab

mod lab;
mod native;
mod side;

pub use lab::measure as in_the_lab;
pub use native::{Options, measure};
