//! The keyboard.

use std::collections::{BTreeMap, VecDeque};

use seat::keyboard::{FromConsole, Key, Leds};

use super::{Holder, MAX_WAITING};
use crate::keysym::{Code, Meaning};

/// Most events that one press can be: Shift aside, the key (Pause has two), Shift again.
const MOST_A_PRESS: usize = 6;

/// The keys that are held, and the events that wait for the device.
#[derive(Debug, Default)]
pub struct Keyboard {
    waiting: VecDeque<FromConsole>,
    /// By whom each key is held; none that nobody holds.
    held: BTreeMap<Code, u128>,
    leds: Leds,
}

impl Keyboard {
    /// No key is held.
    pub fn new() -> Keyboard {
        Keyboard::default()
    }

    /// The guest has switched lamps.
    pub fn set_leds(&mut self, leds: Leds) {
        self.leds = leds;
    }

    /// The lamps.
    pub fn leds(&self) -> Leds {
        self.leds
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

    /// Whether so many keys can be pressed one after the other.
    pub fn has_room(&self, presses: usize) -> bool {
        self.waiting.len() + presses * MOST_A_PRESS <= MAX_WAITING
    }

    /// Somebody presses a key, or holds it down so that it repeats. False: there is no room, and it was not pressed.
    pub fn press(&mut self, who: Holder, code: Code) -> bool {
        if !self.has_room(1) {
            return false;
        }
        self.put(code, false);
        *self.held.entry(code).or_default() |= who.bit();
        true
    }

    /// Somebody lets go of a key. It goes up when nobody holds it any more.
    pub fn release(&mut self, who: Holder, code: Code) {
        let Some(holders) = self.held.get_mut(&code) else { return };
        *holders &= !who.bit();
        if *holders == 0 {
            self.held.remove(&code);
            self.put(code, true);
        }
    }

    /// Somebody lets go of everything.
    pub fn release_all(&mut self, who: Holder) {
        let codes: Vec<_> = self.held.keys().copied().collect();
        codes.into_iter().for_each(|code| self.release(who, code));
    }

    /// Somebody presses what means this. The key that is held now, to be let go of later.
    pub fn press_meaning(&mut self, who: Holder, meaning: Meaning) -> Option<Code> {
        match meaning {
            Meaning::Key(code) => self.press(who, code).then_some(code),
            Meaning::Keypad { code, plain, digit } => {
                let code = if self.leds.num == digit { code } else { plain };
                self.press(who, code).then_some(code)
            }
            Meaning::Character { code, shift, letter } => {
                // With Ctrl and its like a key is a key; else it has to mean what was typed, whatever the viewer's layout.
                let wanted = shift != (letter && self.leds.caps);
                let shifts: Vec<_> = self.held.keys().copied().filter(|code| code.is_shift()).collect();
                if shifts.is_empty() != wanted || self.held.keys().any(|code| code.is_command()) {
                    return self.press(who, code).then_some(code);
                }
                if !self.has_room(1) {
                    return None;
                }
                let around = if wanted { vec![Code::SHIFT] } else { shifts };
                around.iter().for_each(|shift| self.put(*shift, !wanted));
                let pressed = self.press(who, code);
                around.iter().for_each(|shift| self.put(*shift, wanted));
                pressed.then_some(code)
            }
            Meaning::Unicode(character) => {
                let mut units = [0; 2];
                let units = character.encode_utf16(&mut units);
                if self.waiting.len() + units.len() <= MAX_WAITING {
                    self.waiting.extend(units.iter().map(|unit| FromConsole::Unicode(*unit)));
                }
                None
            }
        }
    }

    fn put(&mut self, code: Code, up: bool) {
        let mut event = |scancode, e0, e1| {
            self.waiting.push_back(FromConsole::Key(Key { scancode, e0, e1, up }));
        };
        if code == Code::PAUSE {
            // It tells E1 1D 45.
            event(0x1d, false, true);
            event(0x45, false, false);
        } else {
            event(code.scancode(), code.e0(), false);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keysym::{of_character, of_keysym};

    const ANN: Holder = Holder(0);
    const BOB: Holder = Holder(1);

    /// What waits: make codes, those that go up with 0x80, prefixes in front.
    fn sent(keyboard: &mut Keyboard) -> Vec<u16> {
        let mut all = Vec::new();
        while let Some(event) = keyboard.front() {
            let FromConsole::Key(key) = event else { panic!("{event:?}") };
            all.extend(key.e0.then_some(0xe0));
            all.extend(key.e1.then_some(0xe1));
            all.push(key.scancode | if key.up { 0x80 } else { 0 });
            keyboard.pop();
        }
        all
    }

    fn code(number: u32) -> Code {
        Code::of_number(number).unwrap()
    }

    #[test]
    fn a_key_goes_up_when_the_last_one_lets_go() {
        let mut keyboard = Keyboard::new();
        assert!(keyboard.press(ANN, code(0x1e)) && keyboard.press(BOB, code(0x1e)));
        keyboard.release(ANN, code(0x1e));
        keyboard.release(ANN, code(0x1e));
        assert_eq!(sent(&mut keyboard), [0x1e, 0x1e]);
        keyboard.press(BOB, code(0xd3));
        keyboard.release_all(BOB);
        assert_eq!(sent(&mut keyboard), [0xe0, 0x53, 0x9e, 0xe0, 0xd3]);
        assert!(keyboard.held.is_empty());
    }

    #[test]
    fn characters_mean_what_was_typed() {
        let mut keyboard = Keyboard::new();
        let at = of_character('@').unwrap();
        assert_eq!(keyboard.press_meaning(ANN, at), Some(code(3)));
        keyboard.release(ANN, code(3));
        assert_eq!(sent(&mut keyboard), [0x2a, 0x03, 0xaa, 0x83], "a layout where @ is without Shift");
        keyboard.press(ANN, Code::SHIFT);
        keyboard.press_meaning(ANN, at);
        keyboard.press_meaning(ANN, of_character('/').unwrap());
        assert_eq!(sent(&mut keyboard), [0x2a, 0x03, 0xaa, 0x35, 0x2a], "and one where / is with it");
        keyboard.release_all(ANN);
        sent(&mut keyboard);
        keyboard.set_leds(Leds { caps: true, ..Leds::default() });
        keyboard.press_meaning(ANN, of_character('A').unwrap());
        keyboard.press(ANN, Code::CONTROL);
        keyboard.press_meaning(ANN, of_character('c').unwrap());
        assert_eq!(sent(&mut keyboard), [0x1e, 0x1d, 0x2e]);
    }

    #[test]
    fn the_keypad_follows_num_lock() {
        let mut keyboard = Keyboard::new();
        let (one, end) = (of_keysym(0xffb1).unwrap(), of_keysym(0xff9c).unwrap());
        keyboard.press_meaning(ANN, one);
        keyboard.press_meaning(ANN, end);
        assert_eq!(sent(&mut keyboard), [0x02, 0x4f]);
        keyboard.set_leds(Leds { num: true, ..Leds::default() });
        keyboard.press_meaning(ANN, one);
        keyboard.press_meaning(ANN, end);
        assert_eq!(sent(&mut keyboard), [0x4f, 0xe0, 0x4f]);
    }

    #[test]
    fn pause_has_a_prefix_of_its_own() {
        let mut keyboard = Keyboard::new();
        keyboard.press(ANN, Code::PAUSE);
        keyboard.release(ANN, Code::PAUSE);
        assert_eq!(sent(&mut keyboard), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
    }

    #[test]
    fn what_no_key_has_goes_as_it_is() {
        let mut keyboard = Keyboard::new();
        assert_eq!(keyboard.press_meaning(ANN, Meaning::Unicode('\u{1f600}')), None);
        assert_eq!(keyboard.waiting, [FromConsole::Unicode(0xd83d), FromConsole::Unicode(0xde00)]);
    }

    proptest! {
        #[test]
        fn no_key_stays_pressed_and_no_queue_grows(
            acts in prop::collection::vec((0u8..5, 0u8..3, 1u8..0x7f, any::<bool>()), 0..2000),
        ) {
            let mut keyboard = Keyboard::new();
            let mut down = std::collections::BTreeSet::new();
            let mut take = |keyboard: &mut Keyboard| {
                if let Some(FromConsole::Key(key)) = keyboard.front() {
                    let name = (key.scancode, key.e0);
                    if key.up { down.remove(&name); } else { down.insert(name); }
                    keyboard.pop();
                }
            };
            for (act, who, number, high) in acts {
                let who = Holder(who);
                let Some(code) = Code::of_number(u32::from(number) | u32::from(high) << 7) else { continue };
                match act {
                    0 | 1 => { keyboard.press(who, code); }
                    2 => keyboard.release(who, code),
                    3 => { keyboard.press_meaning(who, of_character(char::from(number)).unwrap_or(Meaning::Key(code))); }
                    _ => take(&mut keyboard),
                }
                prop_assert!(keyboard.waiting.len() <= MAX_WAITING + 3 * 256);
            }
            (0..3).for_each(|who| keyboard.release_all(Holder(who)));
            while !keyboard.is_idle() {
                if matches!(keyboard.front(), Some(FromConsole::Key(_))) { take(&mut keyboard) } else { keyboard.pop() }
            }
            prop_assert!(down.is_empty(), "{down:?}");
        }
    }
}
