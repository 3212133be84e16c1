//! What the guest's keyboard and mouse do: the sum of what all viewers do with theirs.
//!
//! What the device has no room for waits here, up to a bound. A key that was pressed is released whatever happens: there is
//! always room for that. What is dropped is what the guest can miss: first where the pointer has been, then presses.

pub mod keyboard;
pub mod mouse;

pub use keyboard::Keyboard;
pub use mouse::Mouse;

/// Most events that wait for a device; releases of keys come on top.
pub const MAX_WAITING: usize = 256;

/// Who holds a key or a button: the viewer in this place, or [`Holder::TYPIST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(u8);

impl Holder {
    /// Whoever types by command.
    pub const TYPIST: Holder = Holder(127);
    /// Places of viewers.
    pub const PLACES: usize = 127;

    /// The viewer in this place, which is less than [`Holder::PLACES`].
    pub fn viewer(place: usize) -> Holder {
        Holder(place.min(Self::PLACES - 1) as u8)
    }

    fn bit(self) -> u128 {
        1 << self.0
    }
}
