//! `bench net`: two network stacks with a guest and its `vsp-net` between them, beside the same stacks with a plain loop between
//! their TAPs, in turns.
//!
//! * [`side`]: the program that measures
//! * [`native`]: the rounds and what is made of them

mod native;
mod side;

pub use native::{Options, measure};
