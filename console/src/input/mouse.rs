//! The mouse: a pointer that is where it is told to be.

use std::collections::VecDeque;

use seat::mouse::{ALL_BUTTONS, FromConsole, MAX_POSITION};

use super::{Holder, MAX_WAITING};

/// What of a viewer's buttons are turns of a wheel: up, down, left, right.
const WHEELS: u8 = 0x78;

/// The buttons that are held, and the events that wait for the device.
#[derive(Debug)]
pub struct Mouse {
    waiting: VecDeque<FromConsole>,
    /// The buttons of each holder, as its viewer tells them.
    held: [u8; Holder::PLACES + 1],
    /// The buttons that the device knows of, or will know.
    told: u8,
}

impl Default for Mouse {
    fn default() -> Mouse {
        Mouse::new()
    }
}

impl Mouse {
    /// No button is held.
    pub fn new() -> Mouse {
        Mouse { waiting: VecDeque::new(), held: [0; Holder::PLACES + 1], told: 0 }
    }

    /// The next event for the device.
    pub fn front(&self) -> Option<&FromConsole> {
        self.waiting.front()
    }

    /// The device has it.
    pub fn pop(&mut self) {
        self.waiting.pop_front();
    }

    /// Whether nothing waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A viewer's pointer is at this pixel of its picture, with these buttons (RFC 6143, 7.5.5).
    pub fn pointer(&mut self, who: Holder, place: (u16, u16), size: (u32, u32), buttons: u8) {
        let event = FromConsole::Motion { x: scale(place.0, size.0), y: scale(place.1, size.1) };
        match self.waiting.back_mut() {
            Some(last @ FromConsole::Motion { .. }) => *last = event,
            _ => self.put(event),
        }
        let held = &mut self.held[usize::from(who.0 & 127)];
        let turned = buttons & !*held & WHEELS;
        *held = buttons;
        self.tell_buttons();
        let notches = |positive: u8, negative: u8| {
            i16::from(turned & positive != 0) - i16::from(turned & negative != 0)
        };
        let (vertical, horizontal) = (notches(0x08, 0x10), notches(0x40, 0x20));
        if (vertical, horizontal) != (0, 0) {
            self.put(FromConsole::Wheel { vertical, horizontal });
        }
    }

    /// Somebody lets go of everything.
    pub fn release_all(&mut self, who: Holder) {
        self.held[usize::from(who.0 & 127)] = 0;
        self.tell_buttons();
    }

    fn tell_buttons(&mut self) {
        let held = self.held.iter().fold(0, |all, buttons| all | buttons);
        // Left, right, middle, and the one for going back; viewers' are left, middle, right, four wheels, back.
        let told = (held & 1 | held >> 1 & 2 | held << 1 & 4 | held >> 4 & 8) & ALL_BUTTONS;
        if told == self.told {
            return;
        }
        self.told = told;
        self.put(FromConsole::Buttons(told));
    }

    /// Adds an event. Where there is no room: a motion makes room for it, or it takes the place of what it makes void.
    fn put(&mut self, event: FromConsole) {
        if self.waiting.len() >= MAX_WAITING {
            let motion = |event: &FromConsole| matches!(event, FromConsole::Motion { .. });
            let buttons = |event: &FromConsole| matches!(event, FromConsole::Buttons(_));
            let victim = match event {
                FromConsole::Buttons(_) => {
                    let all = &self.waiting;
                    all.iter()
                        .position(motion)
                        .or_else(|| all.iter().position(|event| !buttons(event)))
                        .or(Some(0))
                }
                _ => self.waiting.iter().position(motion),
            };
            match victim {
                Some(index) => self.waiting.remove(index),
                None => return,
            };
        }
        self.waiting.push_back(event);
    }
}

/// A pixel as a place between the edges: its middle, so that however a guest rounds it is the same pixel.
fn scale(pixel: u16, size: u32) -> u16 {
    let size = u64::from(size.max(1));
    let pixel = u64::from(pixel).min(size - 1);
    // Less than `MAX_POSITION` + 1, since the pixel is less than the size.
    ((pixel * 2 + 1) * (u64::from(MAX_POSITION) + 1) / (size * 2)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: Holder = Holder(0);
    const BOB: Holder = Holder(1);
    const SIZE: (u32, u32) = (800, 600);

    fn sent(mouse: &mut Mouse) -> Vec<FromConsole> {
        mouse.waiting.drain(..).collect()
    }

    #[test]
    fn every_pixel_is_hit() {
        for size in [1, 2, 3, 640, 800, 1366, 1920, 3840] {
            for pixel in 0..size {
                let place = u32::from(scale(pixel as u16, size));
                // As libinput and X scale it.
                assert_eq!(place * size / 32768, pixel);
            }
        }
        assert_eq!((scale(5000, 800), scale(7, 0)), (scale(799, 800), 16384));
    }

    #[test]
    fn only_the_last_place_counts_while_the_device_is_busy() {
        let mut mouse = Mouse::new();
        for x in 0..=799 {
            mouse.pointer(ANN, (x, 0), SIZE, 0);
        }
        assert_eq!(sent(&mut mouse), [FromConsole::Motion { x: scale(799, 800), y: scale(0, 600) }]);
    }

    #[test]
    fn buttons_and_wheels_are_told_apart() {
        let mut mouse = Mouse::new();
        let at = FromConsole::Motion { x: scale(0, 800), y: scale(0, 600) };
        mouse.pointer(ANN, (0, 0), SIZE, 0b1000_0111);
        assert_eq!(sent(&mut mouse), [at, FromConsole::Buttons(0b1111)]);
        mouse.pointer(ANN, (0, 0), SIZE, 0b0000_1100);
        let wheel = FromConsole::Wheel { vertical: 1, horizontal: 0 };
        assert_eq!(sent(&mut mouse), [at, FromConsole::Buttons(0b0010), wheel]);
        mouse.pointer(ANN, (0, 0), SIZE, 0b0010_1100);
        let wheel = FromConsole::Wheel { vertical: 0, horizontal: -1 };
        assert_eq!(sent(&mut mouse), [at, wheel]);
        mouse.release_all(ANN);
        assert_eq!(sent(&mut mouse), [FromConsole::Buttons(0)]);
    }

    #[test]
    fn a_button_is_up_when_the_last_one_lets_go() {
        let mut mouse = Mouse::new();
        mouse.pointer(ANN, (0, 0), SIZE, 1);
        mouse.pointer(BOB, (0, 0), SIZE, 1);
        mouse.release_all(ANN);
        assert!(!sent(&mut mouse).contains(&FromConsole::Buttons(0)));
        mouse.release_all(BOB);
        assert_eq!(sent(&mut mouse), [FromConsole::Buttons(0)]);
    }

    #[test]
    fn a_flood_is_bounded_and_no_button_stays_held() {
        let mut mouse = Mouse::new();
        for round in 0..10_000_u16 {
            mouse.pointer(ANN, (round % 800, 0), SIZE, (round % 256) as u8);
        }
        mouse.release_all(ANN);
        assert!(mouse.waiting.len() <= MAX_WAITING);
        let last = sent(&mut mouse).into_iter().rfind(|event| matches!(event, FromConsole::Buttons(_)));
        assert_eq!(last, Some(FromConsole::Buttons(0)));
    }
}
