//! A screen, a keyboard and a mouse: how they are started, what a guest draws and a person sees, and what a person does and
//! a guest gets.
//!
//! * [`rig`]: a VM with all three, and a console
//! * [`seats`]: the socket pairs between them, which outlive every process
//! * [`console`]: the console's process
//! * [`canvas`]: what the guest draws
//! * [`picture`]: pixels, in all formats
//! * [`viewer`]: who looks, with [`wire`], [`zrle`] and [`tight`] below
//! * [`bench`]: what is measured

pub mod bench;
pub mod canvas;
pub mod console;
pub mod picture;
pub mod rig;
pub mod seats;
pub mod tight;
pub mod viewer;
pub mod wire;
pub mod zrle;

pub use canvas::Canvas;
pub use console::Console;
pub use picture::{Area, Format, Picture};
pub use rig::Rig;
pub use seats::Seats;
pub use viewer::Viewer;
