//! One process, one PCI function of the host's: what a stock guest's `pci-hyperv` drives as a bus with one device, and the device's own driver
//! behind it.
//!
//! The process has the function's VFIO files and guest RAM. It answers what the guest asks of the bus, of configuration space, and of the pages
//! that hold the function's table of messages. Everything else is between guest and function: registers are mapped into the guest by the
//! core, interrupts go from the function to the processor in the kernel, and memory the function reaches through the
//! IOMMU. It must never let the guest's word reach a register that is the host's, and the function must not notice that a
//! process dies: the core keeps copies of all its files, a successor goes on with them.
//!
//! * [`wire`]: the messages of the vPCI protocol.
//! * [`config`]: the configuration space that the guest sees.
//! * [`msix`]: the table of messages that it sees.
//! * [`interrupts`]: who has which interrupt.
//! * [`places`]: what it sees in its address space.
//! * [`state`]: what a successor has to know.
//! * [`backend`]: what a function is; [`vfio`], the real one.
//! * [`function`](mod@function): all of it together, without channel and core.
//! * [`device`]: the device that ties it to them.

#![deny(unsafe_code)]

pub mod backend;
pub mod cli;
pub mod config;
pub mod device;
pub mod function;
pub mod interrupts;
#[cfg(feature = "mock")]
pub mod mock;
pub mod msix;
pub mod places;
pub mod state;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may panic")]
mod testing;
pub mod vfio;
pub mod wire;
